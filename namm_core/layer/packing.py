"""Packing kept columns to the right of a dense tensor: how tokens are forgotten.

On a CPU with numba this is partly done in compiled loops, elsewhere by tensor operations without a loop over heads; the
results are equal in every bit. Knows nothing of why a column is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from namm_core import loops

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Packing:
    """Where kept columns go: to the right, order unchanged, padding in front.

    M is the largest number of columns that any head keeps. The results are views of new tensors with room for `room`
    more columns at the end.
    """

    def __init__(self, keep: Tensor, room: int = 0) -> None:
        """keep: (rows, heads, K) bool."""
        self._shape, self._room = keep.shape, room
        self.counts: list[int] | None = None
        """Kept columns of each head, rows end to end; None where counting them would mean waiting for a device."""
        self._compiled = loops.serve() and keep.device.type == "cpu"
        self._tokens: dict[int, Tensor] = {}
        if self._compiled:
            self._order = np.empty((keep.shape[:2].numel(), keep.shape[2]), np.uint32)
            self._counts = np.empty(len(self._order), np.int64)
            _loops()[0](keep.flatten(0, 1).numpy(), self._order, self._counts)
            self.counts = self._counts.tolist()
            self.most, least = max(self.counts), min(self.counts)
            self.ragged, self.whole = least < self.most, least == keep.shape[2]
            return
        self.whole = bool(keep.all())
        rank = keep.cumsum(-1)
        total = rank[..., -1:]
        self.most = int(total.max())
        target = torch.where(keep, rank - 1 + self.most - total, self.most)
        columns = torch.arange(keep.shape[-1], device=keep.device).expand_as(target)
        index = torch.zeros(*keep.shape[:2], self.most + 1 + room, dtype=torch.int64, device=keep.device)
        index.scatter_(-1, target, columns)
        index[..., self.most :] = 0
        self._index = index[..., : self.most + room]
        self._kept = torch.arange(self.most + room, device=keep.device) >= self.most - total
        self.ragged = not bool(self._kept.all())

    def rows(self, tensor: Tensor) -> Tensor:
        """(rows, heads, M, size) of (rows, heads, K, size). Padding means nothing."""
        return self._taken(tensor, tensor.shape[3])[:, :, : self.most]

    def positions(self, tensor: Tensor) -> Tensor:
        """(rows, heads, M) of (rows, heads, K) integers; padding is -1."""
        taken = self._taken(tensor[..., None], 1)[..., 0]
        if not self._compiled:
            taken.masked_fill_(~self._kept, -1)
        elif self.ragged:
            _loops()[3](taken.flatten(0, 1).numpy(), self._counts, self.most)
        return taken[..., : self.most]

    def columns(self, tensor: Tensor) -> Tensor:
        """(rows, heads, size, M) of (rows, heads, size, K); padding is zero."""
        if self._compiled:
            return self._moved(tensor)[..., : self.most]
        index = self._index[:, :, None].expand(*tensor.shape[:3], self._index.shape[-1])
        return tensor.gather(-1, index).masked_fill_(~self._kept[:, :, None], 0.0)[..., : self.most]

    def _taken(self, tensor: Tensor, size: int) -> Tensor:
        """Whole tokens, (rows, heads, M + room, size)."""
        heads, pitch = self._shape[:2].numel(), self._shape[2]
        flat = tensor.flatten(0, 1)
        if flat.stride(1) != size or flat.stride(2) != 1:
            flat = flat.contiguous()
        if heads > 1:
            pitch = flat.stride(0) // size  # the room of the head before is in between
        axes = 1 if size == 1 else 2  # an axis of one is slow
        flat = flat.as_strided(((heads - 1) * pitch + self._shape[2], size)[:axes], (size, 1)[:axes])
        return flat.index_select(0, self._tokens_at(pitch).view(-1)).view(*self._shape[:2], -1, size)

    def _tokens_at(self, pitch: int) -> Tensor:
        """Where each column comes from in a tensor whose heads begin `pitch` tokens apart: (rows, heads, M + room)."""
        if pitch not in self._tokens:
            if self._compiled:
                tokens = np.zeros((len(self._order), self.most + self._room), np.int64)
                _loops()[1](self._order, self._counts, self.most, pitch, tokens)
                self._tokens[pitch] = torch.from_numpy(tokens)
            else:
                heads = torch.arange(self._shape[:2].numel(), device=self._index.device).view(*self._shape[:2], 1)
                self._tokens[pitch] = self._index + heads * pitch
        return self._tokens[pitch]

    def _moved(self, source: Tensor) -> Tensor:
        to = source.new_empty(*source.shape[:3], self.most + self._room)
        if not to.numel():
            return to
        plain = _BITS[source.element_size()]  # numbers are only moved
        flat = source.view(plain).flatten(0, 1)
        flat = flat if flat.stride(2) == 1 else flat.contiguous()
        target = to.view(plain).flatten(0, 1).numpy()
        strides = flat.stride()[:2]
        _loops()[2](loops.spanned(flat), *strides, self._shape[2], self._order, self._counts, self.most, target)
        return to


@functools.cache
def _loops() -> tuple[Callable, ...]:
    """The loops of `Packing`; compiled for each kind of number at its first use in a process."""

    @loops.compiled()
    def order(keep, index, counts):
        for head in range(len(keep)):
            count = 0
            for column in range(keep.shape[1]):
                index[head, count] = column
                count += keep[head, column]
            counts[head] = count

    @loops.compiled()
    def tokens(index, counts, most, pitch, to):
        for head in range(len(to)):
            count = counts[head]
            place = to[head, most - count : most]
            for i in range(count):
                place[i] = head * pitch + index[head, i]

    @loops.compiled()
    def move(source, of_head, of_row, keys, index, counts, most, to):
        for head in range(len(to)):
            count = counts[head]
            padding = most - count
            kept = index[head, :count]
            for row in range(to.shape[1]):
                start = head * of_head + row * of_row
                before, after = source[start : start + keys], to[head, row, padding:most]
                to[head, row, :padding] = 0
                for i in range(len(kept)):
                    after[i] = before[kept[i]]

    @loops.compiled()
    def blank(positions, counts, most):
        for head in range(len(counts)):
            positions[head, : most - counts[head]] = -1

    return order, tokens, move, blank
