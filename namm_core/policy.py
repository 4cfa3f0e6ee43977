"""For writers of policies: base classes with a default for every member of `Policy`, and what most policies do alike.

A policy is a dataclass in a file of `namm_core/policies`; its fields are its options. Knows no policy by name, and no
cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from namm_core.protocols import Attended, Entries, Policy, State, View, Watch
from namm_core.rotary import Rotary


class BasePolicy:
    """Base of all policies: wants to see nothing, remembers nothing and takes no budget. See `Policy`."""

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
    """Base of policies that keep a given number of tokens. Raises ValueError for a budget out of range."""

    budget: int | float | Tensor
    """What a head keeps at each update. An int: tokens. A float in (0, 1]: that fraction of the tokens its row has
    seen by then, forgotten ones included. A tensor (rows,): one of either for each row, by its dtype."""
    update_interval: int = 512
    """Tokens between two updates."""
    takes_budget = True

    def __post_init__(self) -> None:
        check_count("update_interval", self.update_interval, least=1)
        budget = self.budget
        lowest: float
        highest: float
        if isinstance(budget, Tensor):
            if budget.ndim != 1 or not len(budget):
                raise ValueError(f"a budget tensor has shape (rows,), not {tuple(budget.shape)}")
            if budget.dtype == torch.bool or budget.is_complex():
                raise ValueError(f"a budget holds tokens (integers) or fractions (floats), not {budget.dtype}")
            self.rows, lowest, highest = len(budget), budget.min().item(), budget.max().item()
        elif isinstance(budget, bool) or not isinstance(budget, Real):
            raise ValueError(f"a budget is a number of tokens (int), a fraction (float) or a tensor, not {budget!r}")
        else:
            lowest = highest = budget
        if isinstance(lowest, Integral):
            if lowest < 1:
                raise ValueError(f"a budget in tokens is at least 1, not {lowest}")
        elif not 0 < lowest <= highest <= 1:  # not a number fails too
            wrong = highest if highest > 1 else lowest
            raise ValueError(f"a budget as a fraction lies above 0 and at most at 1, not {wrong} (tokens are an int)")

    def tokens(self, view: View) -> Tensor:
        """(rows,) int64, how many tokens each row of the cache keeps in each head, at least 1."""
        if isinstance(self.budget, Tensor):
            budget = self.budget.to(view.newest.device)[view.row]
        else:
            whole = isinstance(self.budget, Integral)
            budget = torch.full_like(view.newest, self.budget, dtype=None if whole else torch.double)
        if budget.is_floating_point():
            budget = (budget.double() * (view.newest + 1)).round()
        return budget.long().clamp(min=1)


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


def newest(view: Entries, count: Tensor) -> Tensor:
    """(rows, kv_heads, keys) bool, the newest `count` (rows,) positions of each row."""
    return view.positions > (view.newest - count)[:, None, None]


def first(view: Entries, count: Tensor) -> Tensor:
    """(rows, kv_heads, keys) bool, the first `count` (rows,) positions of each row."""
    return (view.positions >= 0) & (view.positions < count[:, None, None])


def top(scores: Tensor, view: Entries, tokens: Tensor) -> Tensor:
    """(rows, kv_heads, keys) bool: the newest token and the highest scores of each head, `tokens` (rows,) in all.

    scores: (rows, kv_heads, keys). Of tokens with equal scores the older one stays.
    """
    valid = view.positions >= 0
    scores = scores.masked_fill(view.positions == view.newest[:, None, None], torch.inf).masked_fill(~valid, -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).to(order).expand_as(order))
    return (rank < tokens[:, None, None]) & valid


def check_count(name: str, value: int, least: int) -> None:
    """Raises ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is an integer of at least {least}, not {value!r}")
