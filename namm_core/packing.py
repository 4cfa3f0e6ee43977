"""Packing kept columns to the right of a dense tensor: how tokens are forgotten.

On a CPU with numba partly in compiled loops, elsewhere by tensor operations without a loop over heads; the same in every
bit. Knows nothing of why a column is kept.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from namm_core import loops

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Packing:
    """Where kept columns go: to the right, order unchanged, padding in front.

    M is the largest number of columns that a head keeps. What is returned are views of new tensors that have room for
    `room` columns behind.
    """

    def __init__(self, keep: Tensor, room: int = 0) -> None:
        """keep: (rows, heads, K) bool."""
        self._shape, self._room = keep.shape, room
        self.counts: list[int] | None = None
        """Kept columns of each head, rows end to end; None where counting them would mean waiting for a device."""
        self._loops = loops.NUMBA and keep.device.type == "cpu"
        self._tokens: dict[int, Tensor] = {}
        if self._loops:
            order = torch.empty(keep.shape[:2].numel(), keep.shape[2], dtype=torch.uint32)
            counts = torch.empty(len(order), dtype=torch.int64)
            self._order, self._counts = order.numpy(), counts.numpy()
            _compiled()[0](keep.flatten(0, 1).numpy(), self._order, self._counts)
            self.counts = counts.tolist()
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
        size, step, pitch = tensor.shape[3], tensor.stride(2), self._shape[2]
        heads = self._shape[:2].numel()
        flat = tensor.flatten(0, 1) if tensor.stride(3) == 1 and step == size else tensor.contiguous().flatten(0, 1)
        if heads > 1:
            pitch = flat.stride(0) // size
        flat = flat.as_strided(
            ((heads - 1) * pitch + self._shape[2], size), (size, 1)
        )  # room between heads is one of them
        tokens = self._tokens_at(pitch)
        return flat.index_select(0, tokens.view(-1)).view(*self._shape[:2], -1, size)[:, :, : self.most]

    def positions(self, tensor: Tensor) -> Tensor:
        """(rows, heads, M) of (rows, heads, K) integers; padding is -1."""
        if self._loops:
            return self._moved(tensor[:, :, None], -1)[:, :, 0, : self.most]
        return tensor.gather(2, self._index).masked_fill_(~self._kept, -1)[..., : self.most]

    def columns(self, tensor: Tensor) -> Tensor:
        """(rows, heads, size, M) of (rows, heads, size, K); padding is zero."""
        if self._loops:
            return self._moved(tensor, 0)[..., : self.most]
        index = self._index[:, :, None].expand(*tensor.shape[:3], self._index.shape[-1])
        return tensor.gather(-1, index).masked_fill_(~self._kept[:, :, None], 0.0)[..., : self.most]

    def _tokens_at(self, pitch: int) -> Tensor:
        """Where each column comes from in a tensor whose heads begin `pitch` tokens apart: (rows, heads, M + room)."""
        if pitch not in self._tokens:
            if self._loops:
                tokens = torch.zeros(len(self._order), self.most + self._room, dtype=torch.int64)
                _compiled()[1](self._order, self._counts, self.most, pitch, tokens.numpy())
            else:
                heads = torch.arange(self._shape[:2].numel(), device=self._index.device).view(*self._shape[:2], 1)
                tokens = self._index + heads * pitch
            self._tokens[pitch] = tokens
        return self._tokens[pitch]

    def _moved(self, source: Tensor, blank: int) -> Tensor:
        to = source.new_empty(*source.shape[:3], self.most + self._room)
        if not to.numel():
            return to
        plain = _BITS[source.element_size()]  # numbers are only moved
        flat = source.view(plain).flatten(0, 1)
        if flat.stride(2) != 1:
            flat = flat.contiguous()
        of_head, of_row, _ = flat.stride()
        flat = flat.as_strided((sum((n - 1) * s for n, s in zip(flat.shape, flat.stride(), strict=True)) + 1,), (1,))
        target = to.view(plain).flatten(0, 1).numpy()
        _compiled()[2](
            flat.numpy(), of_head, of_row, self._shape[2], self._order, self._counts, self.most, target, blank
        )
        return to


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
    def tokens(index, counts, most, pitch, to):
        for head in range(len(to)):
            count = counts[head]
            place = to[head, most - count : most]
            for i in range(count):
                place[i] = head * pitch + index[head, i]

    @njit(nogil=True)
    def move(source, of_head, of_row, keys, index, counts, most, to, blank):
        for head in range(len(to)):
            count = counts[head]
            padding = most - count
            kept = index[head, :count]
            for row in range(to.shape[1]):
                start = head * of_head + row * of_row
                before, after = source[start : start + keys], to[head, row, padding:most]
                to[head, row, :padding] = blank
                for i in range(len(kept)):
                    after[i] = before[kept[i]]

    return order, tokens, move
