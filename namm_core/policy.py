"""For writers of policies: base classes with a default for every member of `Policy`, and what most policies do alike.

A policy is a dataclass in a file of `namm_core/policies`; its fields are its options. Knows no policy by name, and no
cache.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from namm_core.protocols import Attended, Policy, State, View, Watch
from namm_core.rotary import Rotary
from namm_core.selection import Budget, Over, reserved, top


class BasePolicy:
    """Base of all policies: wants to see nothing, remembers nothing and takes no budget. See `Policy`."""

    settings: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Options worth trying where a policy is held against others at its best; the first ones are its own defaults."""
    takes_budget: bool = False
    update_interval: int
    needs_attention: bool = False
    needs_queries: bool = False
    advances: bool = False
    rows: int = 1

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """No state. See `Policy.start`."""
        return {}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """The same state; attention: (rows, kv_heads, new, keys). See `Policy.observe`."""
        return state

    def watch(self, state: State, positions: Tensor, fed: int, new: int, groups: int) -> Watch:
        """Puts the block's tiles together, and has `observe` take them in. See `Policy.watch`."""
        return Whole(self, state, positions, fed, new, groups)

    def advance(self, state: State, attended: Attended, fed: int) -> State:
        """Raises ValueError: for policies of which no kernel knows what they make of attention."""
        raise ValueError(f"{type(self).__name__} cannot be advanced by a kernel")

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        """The same summary; queries: (rows, heads, new, head size). See `Policy.summarise`."""
        return summary

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool; every policy must say it. See `Policy.keep`."""
        raise NotImplementedError(f"{type(self).__name__} has no method keep(state, view)")


@dataclass
class Budgeted(BasePolicy):
    """Base of policies that keep a given number of tokens. Raises ValueError for numbers out of range."""

    budget: int | float | Tensor
    """What a head keeps at each update: see `namm_core.selection.Budget`."""
    update_interval: int = 512
    """Tokens between two updates."""
    whole_layers: int = 0
    """First layers that forget nothing; what they hold beyond the budget, the other layers go without."""
    takes_budget = True

    def __post_init__(self) -> None:
        check_count("update_interval", self.update_interval, least=1)
        check_count("whole_layers", self.whole_layers, least=0)
        self._budget = Budget(self.budget)
        self.rows = self._budget.rows

    def tokens(self, view: View) -> Tensor:
        """(rows,) int64, how many tokens each row of the cache keeps in each head of this layer, at least 1."""
        tokens, whole = self._budget.tokens(view), self.whole_layers
        if not whole:
            return tokens
        seen = view.newest + 1
        if view.layer < whole or whole >= view.layers:
            return seen
        return ((view.layers * tokens - whole * seen) // (view.layers - whole)).clamp(min=1)


@dataclass
class Scoring(Budgeted):
    """Base of policies that keep the tokens of the highest scores; `scores` is all that they must say."""

    settings: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"over": "layer"},
        {"sinks": 4},
        {"over": "layer", "sinks": 4},
        {"whole_layers": 1},
        {"whole_layers": 2},
    )
    over: Over = "head"
    """Whether each head keeps as many, or all heads of a layer share what they have together."""
    sinks: int = 0
    """First tokens that always stay, as far as the budget has room beside the newest."""
    recent: int | float = 0
    """Newest tokens that always stay: an int is tokens, a float a share of the budget."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over not in typing.get_args(Over):
            raise ValueError(f"over must be head or layer, not {self.over!r}")
        check_count("sinks", self.sinks, least=0)
        if isinstance(self.recent, float):
            if not 0 <= self.recent <= 1:
                raise ValueError(f"recent as a share of the budget lies in 0 to 1, not {self.recent} (tokens: an int)")
        else:
            check_count("recent", self.recent, least=0)

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys), the higher the better; what is said of padding is ignored."""
        raise NotImplementedError(f"{type(self).__name__} has no method scores(state, view)")

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: `sinks` and `recent` first, then the highest scores. See `Policy.keep`."""
        tokens = self.tokens(view)
        stays = reserved(view, tokens, self.sinks, self.recent)
        return top(self.scores(state, view).masked_fill(stays, torch.inf), view, tokens, self.over)


class Whole:
    """A watch that puts a block's attention together in one tensor, for a policy that takes it in as a whole."""

    def __init__(self, policy: Policy, state: State, positions: Tensor, fed: int, new: int, groups: int) -> None:
        """As `Policy.watch`; policy: whose `observe` takes the block in."""
        self._policy, self._state, self._fed, self._groups = policy, state, fed, groups
        rows, heads, columns = positions.shape
        self._mean = torch.zeros(rows, heads, new, columns, device=positions.device)

    def begin(self, heads: slice, first: int) -> None:
        """See `Watch.begin`."""
        self._heads, self._first, self._at = heads, first, 0

    def show(self, weights: Tensor, scale: Tensor | None) -> None:
        """See `Watch.show`; weights: (heads, groups, queries, keys)."""
        at, self._at = self._at, self._at + weights.shape[2]
        mean = self._mean.flatten(0, 1)[self._heads, at : self._at, self._first : self._first + weights.shape[3]]
        scale = weights.new_ones(weights.shape[:3]) if scale is None else scale
        for group in range(self._groups):  # several times faster than `mean` over a short inner axis
            mean.addcmul_(weights[:, group], scale[:, group, :, None], value=1 / self._groups)

    def end(self) -> None:
        """See `Watch.end`."""

    def state(self) -> State:
        """See `Watch.state`."""
        rows, new = len(self._mean), self._mean.shape[2]
        return self._policy.observe(self._state, self._mean, [self._fed] * rows, [new] * rows)


def check_count(name: str, value: int, least: int) -> None:
    """Raises ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is an integer of at least {least}, not {value!r}")
