"""Features on a scale of their own: standardised over what is held, so that they mean the same on every model.

Knows no feature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from namm_core.protocols import Held

TINY = 1e-6
"""Deviations below it count as this: numbers that are all alike tell tokens apart no better than noise does."""
FAR = 5.0
"""Deviations beyond which distances count by their logarithm: one outlier must not outweigh all else."""


def standardised(values: Tensor, held: Held) -> Tensor:
    """(rows, kv_heads, keys): values less their mean, over their deviation; farther out than `FAR`, less is more.

    Mean and deviation are those of the tokens of a head (or of all heads of a row, where `standardised` of the
    configuration says layer), the first `sinks` left out, which lie apart from all others. What padding gets means
    nothing.
    """
    view, config = held.view, held.config
    counted = view.positions >= config.sinks  # padding is -1
    axes = (-2, -1) if config.standardised == "layer" else (-1,)
    count = counted.sum(axes, keepdim=True).clamp(min=1)
    taken = torch.where(counted, values, 0.0)
    mean = taken.sum(axes, keepdim=True) / count
    centred = torch.where(counted, values - mean, 0.0)
    deviation = ((centred * centred).sum(axes, keepdim=True) / count).sqrt().clamp(min=TINY)
    distance = (values - mean) / deviation
    beyond = (distance.abs() - FAR).clamp(min=0)
    return torch.where(beyond > 0, distance.sign() * (FAR + beyond.log1p()), distance)
