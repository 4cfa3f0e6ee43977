"""What a layer holds while a forward call goes on: dense tensors that tokens are appended to and forgotten from.

Knows nothing of why a token is forgotten, or of attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm_core.layer.blocks import Block
from namm_core.layer.capacity import added, lengthened, roomy
from namm_core.layer.lengths import longest_rows
from namm_core.layer.packing import Packing
from namm_core.layer.stored import Dense, Stored, store
from namm_core.protocols import State


@dataclass
class Content:
    """The tokens of an open layer, each head's to the right, padding in front. Only its own methods write to it."""

    keys: Tensor
    """(rows, kv_heads, K, size)"""
    values: Tensor
    """(rows, kv_heads, K, value size)"""
    positions: Tensor
    """(rows, kv_heads, K) int64, true positions, padding -1."""
    state: State
    """The policy's, (rows, kv_heads, n, K) each."""
    padded: bool
    """Whether some head holds padding."""
    coming: int
    """Columns still to be appended, or fewer: rows that are cut apart have blank ones."""
    interval: int
    """Columns that forgetting leaves room for, at most."""
    counted: bool
    """Whether tokens of heads are counted; on a GPU the count would have to be waited for."""
    widths: list[int] = field(init=False)
    """Tokens of each head, rows end to end; where they are not counted, all columns."""
    fresh: int = 0
    """Columns appended since the layer was opened."""
    forgotten: bool = False
    """Whether something was forgotten, or moved, since then."""
    _room: int = 0
    """Columns of room behind keys, values, positions and the tensors of `_roomy`."""
    _roomy: State = field(default_factory=dict)
    """Tensors of the state that have this room; the policy may have replaced some of them since."""
    _longest: Tensor | None = None
    """(rows * kv_heads,) length of the longest key measured so far."""
    _unmeasured: int = field(init=False)
    """Columns, the last ones, whose keys are not yet in `_longest`."""

    def __post_init__(self) -> None:
        self.widths, self._unmeasured = self._counted_widths(), self.keys.shape[2]

    @classmethod
    def of(cls, stored: Stored, coming: int, interval: int, counted: bool) -> Content:
        """Opens what is stored, for a forward call of `coming` columns; interval, counted: see the fields."""
        held = stored.dense()
        return cls(held.keys, held.values, held.positions, held.state, held.padded, coming, interval, counted)

    def stored(self, before: Stored, stays_open: bool) -> Stored:
        """What is stored at the end of a call; before: what was stored at its beginning.

        stays_open: leaves everything as it is, with its padding and room, since the next call follows at once.
        """
        held = Dense(self.keys, self.values, self.positions, self.state, self.padded)
        if stays_open:
            return held
        return store(held) if self.forgotten else before.grown(held, self.fresh)

    def append(self, keys: Tensor, values: Tensor, block: Block) -> None:
        """Adds a block's keys and values, (rows, kv_heads, new, size), and zeros to the state."""
        new = keys.shape[2]
        if self._room < new or keys.requires_grad:  # what a gradient needs is never written into
            self._make_room(max(new, min(self.coming, self.positions.shape[2])))
        self.keys, self.values = added(self.keys, 2, keys), added(self.values, 2, values)
        self.positions = added(self.positions, 2, block.positions(keys.device)[:, None])
        self.state = {name: self._blank(name, t, new) for name, t in self.state.items()}
        self._room -= new
        self.coming -= new
        self._unmeasured += new
        self.widths = [width + new for width in self.widths]
        self.fresh += new
        if not block.alike:
            self.keep(self.positions >= 0)  # blank tokens go in front

    def replace_state(self, state: State) -> None:
        """Takes over what the policy has made of the state, (rows, kv_heads, n, K) each."""
        self.state = state

    def keep(self, keep: Tensor) -> None:
        """Forgets all columns but those of `keep` (rows, kv_heads, K) bool."""
        room = max(0, min(self.coming, self.interval))
        packing = Packing(keep, room)
        if packing.whole:
            self.padded = False
            return
        self.forgotten = True
        self.padded = packing.ragged
        self.keys, self.values = packing.rows(self.keys), packing.rows(self.values)
        self.positions = packing.positions(self.positions)
        self.state = {name: packing.columns(t) for name, t in self.state.items()}
        self._room, self._roomy = room, dict(self.state)
        self.widths = self._counted_widths() if packing.counts is None else packing.counts

    def longest_keys(self) -> Tensor:
        """(rows * kv_heads,) length of the longest key that each head has held since the layer was opened."""
        if self._unmeasured or self._longest is None:
            new = self.keys[:, :, max(0, self.keys.shape[2] - self._unmeasured) :]  # some may be forgotten by now
            longest = longest_rows(new.flatten(0, 1))
            self._longest = longest if self._longest is None else torch.maximum(self._longest, longest)
            self._unmeasured = 0
        return self._longest

    def _make_room(self, room: int) -> None:
        self.keys, self.values = roomy(self.keys, 2, room), roomy(self.values, 2, room)
        self.positions = roomy(self.positions, 2, room)
        self.state = {name: roomy(t, 3, room) for name, t in self.state.items()}
        self._room, self._roomy = room, dict(self.state)

    def _blank(self, name: str, tensor: Tensor, new: int) -> Tensor:
        """A tensor of the state with `new` columns of zeros behind."""
        if self._roomy.get(name) is not tensor:  # the policy has made another
            return torch.nn.functional.pad(tensor, (0, new))
        longer = self._roomy[name] = lengthened(tensor, 3, new)
        longer[..., -new:] = 0
        return longer

    def _counted_widths(self) -> list[int]:
        if self.padded and self.counted:
            return (self.positions >= 0).sum(-1).flatten().tolist()
        return [self.positions.shape[2]] * self.positions.shape[:2].numel()
