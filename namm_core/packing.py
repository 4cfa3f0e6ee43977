"""Packing kept columns to the right of a dense tensor: how tokens are forgotten.

On a CPU with numba in compiled loops, elsewhere by tensor operations without a loop over heads; the same in every bit.
Knows nothing of why a column is kept.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from namm_core import loops

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Packing:
    """Where kept columns go: to the right, order unchanged, padding in front."""

    def __init__(self, keep: Tensor) -> None:
        """keep: (rows, heads, K) bool."""
        self._keep = keep
        self.counts: list[int] | None = None
        """Kept columns of each head, rows end to end; None where counting them would mean waiting for a device."""
        self._index = self._kept = self._numbers = None
        self.leaves_room = loops.NUMBA and keep.device.type == "cpu"
        """Whether what `rows`, `positions` and `columns` return has the room that was asked for."""
        if self.leaves_room:
            self._index = torch.empty(keep.shape[:2].numel(), keep.shape[2], dtype=torch.int32)
            self._numbers = torch.empty(len(self._index), dtype=torch.int64)
            _compiled()[0](keep.flatten(0, 1).numpy(), self._index.numpy(), self._numbers.numpy())
            self.counts = self._numbers.tolist()
            self.most, least = max(self.counts), min(self.counts)
            self.ragged, self.whole = least < self.most, least == keep.shape[2]
            return
        self.whole = bool(keep.all())
        rank = keep.cumsum(-1)
        total = rank[..., -1:]
        self.most = int(total.max())
        target = torch.where(keep, rank - 1 + self.most - total, self.most)
        columns = torch.arange(keep.shape[-1], device=keep.device).expand_as(target)
        index = torch.zeros(*keep.shape[:2], self.most + 1, dtype=torch.int64, device=keep.device)
        index.scatter_(-1, target, columns)
        self._gather = index[..., : self.most]
        self._kept = torch.arange(self.most, device=keep.device) >= self.most - total
        self.ragged = not bool(self._kept.all())

    def rows(self, tensor: Tensor, room: int = 0) -> Tensor:
        """(rows, heads, M, size) of (rows, heads, K, size); `room` columns may be added behind. Padding means nothing.

        M is the largest number of kept columns of a head.
        """
        if self._kept is None:
            packed = self._room(tensor, (self.most + room, tensor.shape[3]))
            self._move(1, tensor, packed, 0)
            return packed[:, :, : self.most]
        heads = torch.arange(self._gather.shape[:2].numel(), device=tensor.device).view(*self._gather.shape[:2], 1)
        tokens = self._gather + heads * tensor.shape[2]
        return tensor.flatten(0, 2).index_select(0, tokens.flatten()).unflatten(0, tokens.shape)

    def positions(self, tensor: Tensor, room: int = 0) -> Tensor:
        """(rows, heads, M) of (rows, heads, K) integers; padding is -1."""
        if self._kept is None:
            packed = self._room(tensor, (self.most + room,))
            self._move(1, tensor[..., None], packed[..., None], -1)
            return packed[:, :, : self.most]
        return tensor.gather(2, self._gather).masked_fill_(~self._kept, -1)

    def columns(self, tensor: Tensor, room: int = 0) -> Tensor:
        """(rows, heads, size, M) of (rows, heads, size, K); padding is zero."""
        if self._kept is None:
            packed = self._room(tensor, (tensor.shape[2], self.most + room))
            self._move(2, tensor, packed, 0)
            return packed[..., : self.most]
        taken = tensor.gather(-1, self._gather[:, :, None].expand(*tensor.shape[:3], self.most))
        return taken.masked_fill_(~self._kept[:, :, None], 0.0)

    def _room(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        return tensor.new_empty(*tensor.shape[:2], *shape)

    def _move(self, loop: int, source: Tensor, to: Tensor, blank: int) -> None:
        if not to.numel():
            return
        plain = _BITS[source.element_size()]  # numbers are only moved
        source, to = (t.detach().view(plain).flatten(0, 1).numpy() for t in (source, to))
        _compiled()[loop](source, self._index.numpy(), self._numbers.numpy(), self.most, to, blank)


@functools.cache
def _compiled() -> tuple[Callable, Callable, Callable]:
    """The loops of `Packing`; compiled for each kind of number at its first use in a process."""
    njit = importlib.import_module("numba").njit  # by name: a copy that travels with a memory does without

    @njit(nogil=True)
    def order(keep, index, counts):
        for head in range(len(keep)):
            count = 0
            for column in range(keep.shape[1]):
                index[head, count] = column
                count += keep[head, column]
            counts[head] = count

    @njit(nogil=True)
    def rows(source, index, counts, most, to, blank):
        size = source.shape[2]
        for head in range(len(source)):
            padding = most - counts[head]
            to[head, :padding] = blank
            for i in range(counts[head]):
                token, place = index[head, i], padding + i
                for k in range(size):
                    to[head, place, k] = source[head, token, k]

    @njit(nogil=True)
    def columns(source, index, counts, most, to, blank):
        for head in range(len(source)):
            padding, count = most - counts[head], counts[head]
            for row in range(source.shape[1]):
                before, after = source[head, row], to[head, row]
                after[:padding] = blank
                for i in range(count):
                    after[padding + i] = before[index[head, i]]

    return order, rows, columns
