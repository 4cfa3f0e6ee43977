"""The interface of everything that can decide what a cache forgets.

A policy holds its configuration, never the state of a sequence: the cache carries that and moves it when it
forgets, repeats or reorders. What belongs to cached keys (`start`, `observe`) is named tensors whose last axis is the
keys; what belongs to a row as a whole (`summarise`) is named tensors whose first axis is the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Protocol

import torch
from torch import Tensor

from namm_core.rotary import Rotary

State = dict[str, Tensor]


@dataclass(frozen=True)
class View:
    """What a policy may look at when a layer's memory is updated."""

    positions: Tensor
    """(rows, kv_heads, keys) int64, true positions ascending; padding is -1 and stands in front."""
    keys: Tensor
    """(rows, kv_heads, keys, head size), after rotary embedding."""
    values: Tensor
    """(rows, kv_heads, keys, head size)"""
    newest: Tensor
    """(rows,) int64, position of the newest token."""
    row: Tensor
    """(rows,) int64, which row of the policy (candidate, sample) each row of the cache belongs to."""
    due: Tensor
    """(rows,) bool, rows that are being updated; what is decided for the others is ignored."""
    layer: int
    """Index of the layer."""
    summary: State = field(default_factory=dict)
    """What `summarise` made of the queries so far, (rows, ...) each; empty where it is not asked for."""
    rotary: Rotary | None = None
    """The layer's rotary embedding; None where there is none that is known (`namm_core.rotary`)."""
    scaling: float = 1.0
    """Attention logits are query . key times this."""
    counts: list[int] | None = None
    """Tokens of each head, rows end to end, where they are known."""

    def widths(self) -> list[int]:
        """Tokens of each head, rows end to end; all columns where counting them would mean waiting for a device."""
        if self.counts is not None:
            return self.counts
        if self.positions.device.type == "cpu":
            columns = self.positions.shape[-1]
            return [columns - int(head.searchsorted(0)) for head in self.positions.flatten(0, 1).numpy()]
        return [self.positions.shape[-1]] * self.positions.shape[:2].numel()


class Watch(Protocol):
    """Takes in the attention of one block of queries tile by tile, the heads of all rows end to end."""

    def begin(self, heads: slice, first: int) -> None:
        """Tiles of these heads follow, from the block's first query to its last; keys before `first` hold nothing."""
        ...

    def show(self, weights: Tensor, scale: Tensor | None) -> None:
        """The next queries' attention (heads, groups, queries, keys), float32; keys from `first` to the last query.

        It still is to be multiplied by `scale` (heads, groups, queries), if any. Both are the watch's to overwrite.
        """
        ...

    def end(self) -> None:
        """No more tiles of these heads."""
        ...

    def state(self) -> State:
        """The state after the block."""
        ...


class Policy(Protocol):
    """Decides, layer by layer and head by head, which cached tokens stay.

    A policy may offer `watch(state, fed, new, groups) -> Watch` beside `observe`, to see a block of `new` queries, the
    same in all rows, in tiles that are still in the processor's cache; it may write into `state`, whose keys include
    the block's own. It may also offer `advances`, a bool, and `advance(state, attended, fed) -> State`, which does the
    same where a kernel has left a `namm_core.attention.fused.Attended` and no tile of attention.
    """

    update_interval: int
    """Tokens fed to a row between two updates of its memory."""
    needs_attention: bool
    """Whether `observe` must be called; without it, attention may run in fused kernels."""
    needs_queries: bool
    """Whether `summarise` must be called."""
    rows: int
    """Rows that the policy tells apart (1: the same for all)."""

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """State of a memory that has seen nothing; (rows, kv_heads, size, 0): keys (none yet) are the last axis.

        dtype: of the cached keys. What is held for each key may be held in half precision where the keys are.
        """
        ...

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """Takes in the attention (rows, kv_heads, new, keys) of one block of queries; returns the new state.

        fed: tokens of each row before the block; counts: tokens of each row in it, right-aligned.
        """
        ...

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        """Takes in the queries of one block, where `needs_queries`; returns the new summary, (rows, ...) tensors.

        summary: {} at first; queries: (rows, heads, new, head size), after rotary embedding; positions: (rows, new),
        -1 for blank ones; rotary: as in `View`.
        """
        ...

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool, True for what stays. Padding and the newest token need no care."""
        ...


class Stateless:
    """Base of policies that need no attention and remember nothing."""

    update_interval: int
    needs_attention = False
    needs_queries = False
    rows = 1

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        return {}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        return state

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        return summary


@dataclass
class Budgeted(Stateless):
    """Base of policies that keep a given number of tokens. Raises ValueError for a budget that is none."""

    budget: int | float | Tensor
    """What a head keeps at each update. An int: tokens. A float in (0, 1]: that fraction of the tokens its row has
    seen by then, forgotten ones included. A tensor (rows,): one of either for each row, by its dtype."""
    update_interval: int = 512
    """Tokens between two updates."""

    def __post_init__(self) -> None:
        check_count("update_interval", self.update_interval, least=1)
        budget = self.budget
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
        budget = self.budget
        if isinstance(budget, Tensor):
            budget = budget.to(view.newest.device)[view.row]
        else:
            budget = torch.full_like(view.newest, budget, dtype=None if isinstance(budget, Integral) else torch.double)
        if budget.is_floating_point():
            budget = (budget.double() * (view.newest + 1)).round()
        return budget.long().clamp(min=1)


def newest(view: View, count: Tensor) -> Tensor:
    """(rows, kv_heads, keys) bool, the newest `count` (rows,) positions of each row."""
    return view.positions > (view.newest - count)[:, None, None]


def first(view: View, count: Tensor) -> Tensor:
    """(rows, kv_heads, keys) bool, the first `count` (rows,) positions of each row."""
    return (view.positions >= 0) & (view.positions < count[:, None, None])


def top(scores: Tensor, view: View, tokens: Tensor) -> Tensor:
    """Keeps the newest token and the highest scores (rows, kv_heads, keys) of each head, `tokens` (rows,) in all."""
    valid = view.positions >= 0
    scores = scores.masked_fill(view.positions == view.newest[:, None, None], torch.inf).masked_fill(~valid, -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).to(order).expand_as(order))
    return (rank < tokens[:, None, None]) & valid


def check_count(name: str, value: int, least: int) -> None:
    """Raises ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is an integer of at least {least}, not {value!r}")
