"""Scores averaged over neighbours: an answer is rarely one token long. Knows nothing of where scores come from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from namm_core.protocols import Entries


def pooled(scores: Tensor, view: Entries, size: int) -> Tensor:
    """(rows, kv_heads, keys): each score's mean with those of its neighbours, `size` (odd) tokens in all.

    scores: (rows, kv_heads, keys). Neighbours are those that the head holds, however far apart in the text; at the ends
    there are fewer.
    """
    there = (view.positions >= 0).to(scores.dtype)
    total, count = (F.avg_pool1d(x, size, stride=1, padding=size // 2) for x in (scores * there, there))
    return total / count.clamp(min=1 / size)
