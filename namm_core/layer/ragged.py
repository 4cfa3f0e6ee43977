"""Tensors of heads that hold different numbers of tokens, stored end to end: what is forgotten is given back.

Knows nothing of attention, policies or why a head holds what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Ragged:
    """Tokens of (rows, kv_heads) heads, one after the other in (tokens, ...) tensors without padding."""

    def __init__(self, valid: Tensor) -> None:
        """valid: (rows, kv_heads, K) bool, the columns of a dense tensor that hold a token."""
        self.counts = valid.sum(-1)
        """(rows, kv_heads) int64"""
        self.most = int(self.counts.max())
        self._at = valid.nonzero(as_tuple=True)

    def pack(self, dense: Tensor) -> Tensor:
        """(tokens, ...) of a dense (rows, kv_heads, K, ...), in new storage. Only before `close`."""
        return dense[self._at]

    def close(self) -> Ragged:
        """Drops what only `pack` needs."""
        del self._at
        return self

    def spread(self) -> tuple[Tensor, Tensor]:
        """Where each column of the dense form comes from, packed to the right, and which of them hold a token.

        Returns indices (rows, kv_heads, most) into the tokens, any token for padding, and a bool of that shape.
        """
        counts = self.counts[..., None]
        first = self.counts.flatten().cumsum(0).view_as(self.counts)[..., None] - counts
        column = torch.arange(self.most, device=counts.device) - (self.most - counts)
        return (first + column).clamp_(min=0), column >= 0


@dataclass(frozen=True)
class Heads:
    """Where the keys of each (row, KV head) stand in a tensor: `lengths` of them in a row, from `first` on."""

    first: Tensor
    """(rows * kv_heads,) integers: first column of (heads, columns, ...), first token of (tokens, ...)."""
    lengths: Tensor
    """(rows * kv_heads,) int32"""
    longest: int
    """No head is longer."""

    @classmethod
    def packed(cls, lengths: Tensor, columns: int) -> Heads:
        """Heads of a dense tensor of so many columns, packed to the right."""
        return cls(columns - lengths, lengths, columns)

    @classmethod
    def end_to_end(cls, lengths: Tensor) -> Heads:
        """Heads one after the other in a tensor without padding (`namm_core.layer.ragged`)."""
        return cls(lengths.cumsum(0) - lengths, lengths, int(lengths.max()))


def dense(tokens: Tensor, index: Tensor) -> Tensor:
    """(rows, kv_heads, most, ...) of (tokens, ...), by the indices of `Ragged.spread`."""
    return tokens.index_select(0, index.flatten()).unflatten(0, index.shape)
