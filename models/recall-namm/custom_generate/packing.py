# A copy of namm_core/packing.py of the package namm (Apache-2.0), so that this folder needs no other.
"""Packing kept columns to the right of a dense tensor: how tokens are forgotten without a loop over heads.

Knows nothing of why a column is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packing(keep: Tensor) -> tuple[Tensor, Tensor]:
    """How kept columns are packed to the right, order unchanged.

    keep: (rows, heads, K) bool. Returns an index (rows, heads, M) into K and which of its entries are real
    (the rest is padding, in front); M is the largest number of kept columns.
    """
    rank = keep.cumsum(-1)
    total = rank[..., -1:]
    most = int(total.max())
    target = torch.where(keep, rank - 1 + most - total, most)
    columns = torch.arange(keep.shape[-1], device=keep.device).expand_as(target)
    index = torch.zeros(*keep.shape[:2], most + 1, dtype=torch.int64, device=keep.device)
    index.scatter_(-1, target, columns)
    return index[..., :most], torch.arange(most, device=keep.device) >= most - total


def gather_keys(tensor: Tensor, index: Tensor, kept: Tensor) -> Tensor:
    """Gathers the last axis of (rows, heads, size, K) by `packing`'s index; padding becomes zero."""
    taken = tensor.gather(-1, index[:, :, None].expand(*tensor.shape[:3], index.shape[-1]))
    return taken.masked_fill_(~kept[:, :, None], 0.0)
