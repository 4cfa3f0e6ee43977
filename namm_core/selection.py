"""Which tokens a budget goes to: how many a row may keep, and the best-scored ones among those that compete for it.

Knows no policy and no scores' source.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Literal

import torch
from torch import Tensor

from namm_core.protocols import Entries

Over = Literal["head", "layer"]
"""Who shares a budget: each head has its own, or all heads of a layer compete for one (AdaKV, arXiv 2407.11550)."""


class Budget:
    """What a head keeps at each update, on average where a layer's heads share.

    value: an int is tokens; a float in (0, 1] that fraction of the tokens its row has seen by then, forgotten ones
    included; a tensor (rows,) one of either for each row, by its dtype. Raises ValueError for one out of range.
    """

    def __init__(self, value: int | float | Tensor) -> None:
        lowest: float
        highest: float
        self.value, self.rows = value, 1
        if isinstance(value, Tensor):
            if value.ndim != 1 or not len(value):
                raise ValueError(f"a budget tensor has shape (rows,), not {tuple(value.shape)}")
            if value.dtype == torch.bool or value.is_complex():
                raise ValueError(f"a budget holds tokens (integers) or fractions (floats), not {value.dtype}")
            self.rows, lowest, highest = len(value), value.min().item(), value.max().item()
        elif isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"a budget is a number of tokens (int), a fraction (float) or a tensor, not {value!r}")
        else:
            lowest = highest = value
        if isinstance(lowest, Integral):
            if lowest < 1:
                raise ValueError(f"a budget in tokens is at least 1, not {lowest}")
        elif not 0 < lowest <= highest <= 1:  # not a number fails too
            wrong = highest if highest > 1 else lowest
            raise ValueError(f"a budget as a fraction lies above 0 and at most at 1, not {wrong} (tokens are an int)")

    def tokens(self, view: Entries) -> Tensor:
        """(rows,) int64, how many tokens each row of the cache keeps in each head, at least 1."""
        if isinstance(self.value, Tensor):
            budget = self.value.to(view.newest.device)[view.row]
        else:
            whole = isinstance(self.value, Integral)
            budget = torch.full_like(view.newest, self.value, dtype=None if whole else torch.double)
        if budget.is_floating_point():
            budget = (budget.double() * (view.newest + 1)).round()
        return budget.long().clamp(min=1)


def newest(view: Entries, count: Tensor) -> Tensor:
    """(rows, kv_heads, keys) bool, the newest `count` positions, of each row (rows,) or head (rows, kv_heads)."""
    return view.positions > view.newest[:, None, None] - _of_heads(count)


def first(view: Entries, count: Tensor) -> Tensor:
    """(rows, kv_heads, keys) bool, the first `count` positions, of each row (rows,) or head (rows, kv_heads)."""
    return (view.positions >= 0) & (view.positions < _of_heads(count))


def reserved(view: Entries, tokens: Tensor, sinks: int = 0, recent: int | float = 0) -> Tensor:
    """(rows, kv_heads, keys) bool: what stays whatever its score, within `tokens` a head, (rows,) or (rows, kv_heads).

    The first `sinks`, as far as the budget has room beside the newest; then the newest ones: `recent` tokens (int), or
    that share of the budget (float).
    """
    begin = (tokens - 1).clamp(min=0, max=sinks)
    end = (tokens * recent).floor().long() if isinstance(recent, float) else torch.full_like(tokens, recent)
    return first(view, begin) | newest(view, torch.minimum(end, tokens - begin))


def top(scores: Tensor, view: Entries, tokens: Tensor, over: Over = "head") -> Tensor:
    """(rows, kv_heads, keys) bool: each head's newest token, then the highest scores, `tokens` a head in all.

    scores: (rows, kv_heads, keys), infinite for what must stay; tokens: (rows,), or (rows, kv_heads) where heads keep
    unequally many; over: whether each head keeps its own, or all heads of a row share what they have together. Of
    tokens with equal scores the older one stays, then the first head's.
    """
    valid = view.positions >= 0
    scores = scores.masked_fill(view.positions == view.newest[:, None, None], torch.inf).masked_fill(~valid, -torch.inf)
    if over == "layer":
        # Older ones of all heads first; heads of unequal length have the same position in different columns.
        by_age = view.positions.flatten(1)[:, None].argsort(dim=-1, stable=True)
        together = scores.flatten(1)[:, None].gather(-1, by_age)
        kept = _best(together, tokens * scores.shape[1] if tokens.ndim == 1 else tokens.sum(1))
        return torch.empty_like(kept).scatter_(-1, by_age, kept).view_as(scores) & valid
    return _best(scores, tokens) & valid


def _of_heads(count: Tensor) -> Tensor:
    """(rows, 1 or kv_heads, 1) of counts (rows,) or (rows, kv_heads)."""
    return count[:, None, None] if count.ndim == 1 else count[..., None]


def _best(scores: Tensor, count: Tensor) -> Tensor:
    """bool, the `count` (rows,) or (rows, heads) highest of each last axis; of equals the first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).to(order).expand_as(order))
    return rank < _of_heads(count)
