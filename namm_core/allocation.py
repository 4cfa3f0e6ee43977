"""How the layers of a model share one budget: by their depth, as a memory's numbers say. Knows no scores.

Layers differ in how much an answer needs of what they hold (PyramidKV, arXiv 2406.02069); which ones, a search finds.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-6
"""A share this little below a whole token is one."""


def shares(weights: Tensor, layers: int) -> Tensor:
    """(rows, layers) float64, each layer's share of a budget, mean 1 over the layers.

    weights: (rows, D), logarithms at D depths that are spread evenly from the first layer to the last; between them
    they are interpolated, so that the same numbers fit a model with more layers or fewer. Equal weights: equal shares.
    """
    depths = weights.shape[1]
    at = (torch.arange(layers, dtype=torch.float64) + 0.5) * depths / layers - 0.5  # in units of weights
    at = at.clamp(min=0, max=depths - 1).to(weights.device)
    below = at.floor().long().clamp(max=max(depths - 2, 0))
    above = (below + 1).clamp(max=depths - 1)
    part = at - below
    logs = weights.double()
    return (logs[:, below] * (1 - part) + logs[:, above] * part).softmax(-1) * layers


def allotted(mean: Tensor, seen: Tensor, share: Tensor, layer: int) -> Tensor:
    """(rows,) int64, tokens that each head of `layer` keeps; `mean` (rows,) on average over the layers, or fewer.

    seen: (rows,), tokens so far; share: (rows, layers), positive. No layer is given more than has been seen: what it
    cannot use, the others share in their proportions. At least 1.
    """
    most = seen[:, None].double()
    given = mean[:, None].double() * share
    total, full = given.sum(1, keepdim=True), torch.zeros_like(given, dtype=torch.bool)
    while True:  # at most once for each layer
        over = full | (given >= most)
        if torch.equal(over, full):
            break
        full, rest = over, torch.where(over, 0.0, share)
        left = (total - torch.where(full, most, 0.0).sum(1, keepdim=True)).clamp(min=0)
        given = torch.where(full, most, left * rest / rest.sum(1, keepdim=True).clamp(min=1e-12))
    return (given[:, layer] + ROUNDING).floor().long().clamp(min=1)
