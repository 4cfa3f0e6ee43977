"""How the layers of a model, or all its heads, share one budget: as a memory's numbers say. Knows no scores.

Layers differ in how much an answer needs of what they hold (PyramidKV, arXiv 2406.02069), and heads differ more: a few
look things up far back, most look at what is near (DuoAttention, arXiv 2410.10819). Which
ones, a search finds, or `namm_core.head_probe`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from namm_core.protocols import View

ROUNDING = 1e-6
"""A share this little below a whole token is one."""


def shares(weights: Tensor, layers: int, heads: int) -> Tensor:
    """(rows, layers, heads) float64, each head's share of a budget, mean 1 over all heads.

    weights: (rows, D) or (rows, D, H), logarithms. (rows, D): at D depths that are spread evenly from the first layer
    to the last; between them they are interpolated, so that the same numbers fit a model with more layers or fewer.
    (rows, D, H): those of each head of a model with D layers of H heads; any other model's heads have equal shares.
    Equal weights: equal shares.
    """
    logs = weights.double()
    if logs.ndim == 2:
        logs = _interpolated(logs, layers)[..., None].expand(-1, -1, heads)
    elif logs.shape[1:] != (layers, heads):
        logs = logs.new_zeros(len(logs), layers, heads)
    return (logs.flatten(1).softmax(-1) * layers * heads).unflatten(1, (layers, heads))


def allotted(mean: Tensor, seen: Tensor, share: Tensor, least: int = 1) -> Tensor:
    """(rows, layers, heads) int64, tokens that each head keeps; `mean` (rows,) on average over all, or fewer.

    seen: (rows,), tokens so far; share: (rows, layers, heads), positive. No head is given more than has been seen, and
    none fewer than `least`, or half of `mean` where that is less: what is left is shared in the heads' proportions.
    """
    share = share.double()
    weights = share.flatten(1)
    most, mean = seen[:, None].double().expand_as(weights), mean[:, None].double()
    most, low = torch.maximum(most, mean), (mean / 2).clamp(max=least).expand_as(weights)
    # A head is given (level * weight), within its bounds; together that is a line with a bend at each bound.
    bends, order = torch.cat([low / weights, most / weights], 1).sort(-1)
    slope = torch.cat([weights, -weights], 1).gather(1, order).cumsum(1)[:, :-1]
    rise = torch.cat([torch.zeros_like(mean), (slope * bends.diff(dim=1)).cumsum(1)], 1)
    wanted = mean * weights.shape[1] - low.sum(1, keepdim=True)
    at = (torch.searchsorted(rise, wanted, right=True) - 1).clamp(min=0, max=slope.shape[1] - 1)
    level = bends.gather(1, at) + (wanted - rise.gather(1, at)) / slope.gather(1, at).clamp(min=1e-12)
    given = torch.minimum(torch.maximum(level * weights, low), most)
    return (given + ROUNDING).floor().long().clamp(min=1).view(share.shape)


class Allotments:
    """What each head is allotted at an update, worked out once for all layers.

    least: tokens that a head keeps at least, where the budget has room for as many.
    """

    def __init__(self, least: int) -> None:
        self.least = least
        self._last: tuple[list[Tensor], Tensor] | None = None

    def of(self, weights: Tensor, mean: Tensor, view: View) -> Tensor:
        """(rows, heads) int64 of the view's layer. weights: as in `shares`, a row for each of the view's."""
        heads, asked = view.positions.shape[1], [mean, view.newest, view.row]
        last = self._last
        if last is None or last[1].shape[1:] != (view.layers, heads) or not _same(last[0], asked):
            share = shares(weights, view.layers, heads)
            given = allotted(mean, view.newest + 1, share, self.least)
            last = self._last = [tensor.clone() for tensor in asked], given  # a cache may go on in the same tensors
        return last[1][:, view.layer]


def _same(these: list[Tensor], those: list[Tensor]) -> bool:
    return all(a.device == b.device and torch.equal(a, b) for a, b in zip(these, those, strict=True))


def _interpolated(logs: Tensor, layers: int) -> Tensor:
    """(rows, layers) of (rows, D)."""
    depths = logs.shape[1]
    at = (torch.arange(layers, dtype=torch.float64) + 0.5) * depths / layers - 0.5  # in units of depths
    at = at.clamp(min=0, max=depths - 1).to(logs.device)
    below = at.floor().long().clamp(max=max(depths - 2, 0))
    above = (below + 1).clamp(max=depths - 1)
    part = at - below
    return logs[:, below] * (1 - part) + logs[:, above] * part
