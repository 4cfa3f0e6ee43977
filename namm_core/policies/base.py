"""The interface of everything that can decide what a cache forgets.

A policy holds its configuration, never the state of a sequence: the cache carries that and moves it when it
forgets, repeats or reorders. What belongs to cached keys (`start`, `observe`) is named tensors whose last axis is the
keys; what belongs to a row as a whole (`summarise`) is named tensors whose first axis is the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """The layer's rotary embedding; None where the model has none."""


class Policy(Protocol):
    """Decides, layer by layer and head by head, which cached tokens stay."""

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

    def summarise(self, summary: State, queries: Tensor, positions: Tensor) -> State:
        """Takes in the queries of one block, where `needs_queries`; returns the new summary, (rows, ...) tensors.

        summary: {} at first; queries: (rows, heads, new, head size), before rotary embedding; positions: (rows, new),
        -1 for blank ones.
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

    def summarise(self, summary: State, queries: Tensor, positions: Tensor) -> State:
        return summary


@dataclass
class Budgeted(Stateless):
    """Base of policies that keep a given number of tokens in every head. Raises ValueError for an impossible budget."""

    budget: int | float | Tensor
    """What a head keeps at each update: an int is tokens; a float in (0, 1] is that share of the tokens seen so far; a
    tensor (rows,) is one or the other for each row, by its dtype."""
    update_interval: int = 512
    """Tokens between two updates."""

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not isinstance(self.budget, int | float | Tensor):
            raise ValueError(f"a budget is a number of tokens or a share of them, not {self.budget!r}")
        budget = torch.as_tensor(self.budget)
        if budget.ndim > 1:
            raise ValueError(f"a budget is one number, or one for each row, not of shape {tuple(budget.shape)}")
        if budget.is_floating_point() and not bool(((budget > 0) & (budget <= 1)).all()):
            raise ValueError(f"a budget that is a share lies above 0 and up to 1, not {self.budget} (tokens: an int)")
        if not budget.is_floating_point() and not bool((budget >= 1).all()):
            raise ValueError(f"a budget in tokens is at least 1, not {self.budget}")
        self.rows = budget.numel()

    def tokens(self, view: View) -> Tensor:
        """(rows, 1, 1) int64, at least 1: tokens that each head of a row keeps at this update."""
        budget = torch.as_tensor(self.budget, device=view.row.device).reshape(-1)[view.row]
        if budget.is_floating_point():
            budget = (budget.double() * (view.newest + 1)).round().long().clamp(min=1)
        return budget[:, None, None]


def top(scores: Tensor, view: View, tokens: Tensor) -> Tensor:
    """Keeps the newest token and the highest scores of each head, as many as `tokens` (rows, 1, 1) says.

    scores: (rows, kv_heads, keys), infinite for what must stay; of equal ones the older stays.
    """
    valid = view.positions >= 0
    newest = view.positions == view.newest[:, None, None]
    scores = scores.masked_fill(newest, torch.inf).masked_fill(~valid, -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).to(order).expand_as(order))
    return (rank < tokens) & valid


def newest_tokens(view: View, tokens: Tensor) -> Tensor:
    """(rows, kv_heads, keys) bool, the newest `tokens` (rows, 1, 1) of each row."""
    return view.positions > view.newest[:, None, None] - tokens
