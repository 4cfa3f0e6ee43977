"""What a layer holds between two forward calls: keys, values, positions and state, without the padding.

Heads of unequal length are stored end to end; the tokens that came since stand behind them, dense, so that a decode
step copies these alone. Where all heads hold as many, or nearly so, everything is dense. Knows nothing of why a token
is held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.layer.capacity import owned
from namm_core.layer.ragged import Ragged, dense
from namm_core.policies.base import State

SPARE = 0.02
"""Padding, as a share of what is held, that is not worth storing heads end to end."""


@dataclass(frozen=True)
class Held:
    """A closed layer. Nothing here is ever written into: a copy may share its tensors."""

    keys: Tensor
    """(rows, kv_heads, K, size); where `old` is set, the tokens since."""
    values: Tensor
    """As `keys`."""
    positions: Tensor
    """(rows, kv_heads, K) int32, padding -1; where `whole` is set, (tokens,)."""
    state: State
    """(rows, kv_heads, n, K) each; where `whole` is set, (tokens, n)."""
    padded: bool = False
    """Whether some head holds padding (dense form only)."""
    old: Ragged | None = None
    """Which tokens `old_keys` and `old_values` are."""
    whole: Ragged | None = None
    """Which tokens `positions` and `state` are: the old ones and those since."""
    old_keys: Tensor | None = None
    """(tokens, size)"""
    old_values: Tensor | None = None
    """(tokens, size)"""

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, positions: Tensor, state: State, padded: bool) -> Held:
        """Stores dense tensors, heads of unequal length end to end."""
        if not padded or _wasted(positions) <= SPARE:
            state = {name: owned(t) for name, t in state.items()}
            return cls(owned(keys), owned(values), positions.int(), state, padded)
        whole = Ragged(positions >= 0)
        flat = whole.pack(positions).int(), {name: whole.pack(t.transpose(2, 3)) for name, t in state.items()}
        old_keys, old_values = whole.pack(keys), whole.pack(values)
        empty = keys[:, :, :0].clone(), values[:, :, :0].clone()
        whole.close()
        return cls(*empty, *flat, old=whole, whole=whole, old_keys=old_keys, old_values=old_values)

    def grown(self, keys: Tensor, values: Tensor, positions: Tensor, state: State, padded: bool, new: int) -> Held:
        """The same with `new` tokens more, given the dense form of all of it; nothing else has changed."""
        if self.old is None:
            return Held.of(keys, values, positions, state, padded)
        whole = Ragged(positions >= 0)
        flat = whole.pack(positions).int(), {name: whole.pack(t.transpose(2, 3)) for name, t in state.items()}
        since = slice(keys.shape[2] - self.keys.shape[2] - new, None)
        tail = keys[:, :, since].clone(), values[:, :, since].clone()
        whole.close()
        return Held(*tail, *flat, old=self.old, whole=whole, old_keys=self.old_keys, old_values=self.old_values)

    def dense(self) -> tuple[Tensor, Tensor, Tensor, State, bool]:
        """Keys, values, positions (int64) and state with each head's tokens packed to the right; whether padded."""
        if self.old is None:
            return self.keys, self.values, self.positions.long(), self.state, self.padded
        index, _ = self.old.spread()
        keys = torch.cat([dense(self.old_keys, index), self.keys], dim=2)
        values = torch.cat([dense(self.old_values, index), self.values], dim=2)
        index, valid = self.whole.spread()
        positions = dense(self.positions, index).long().masked_fill_(~valid, -1)
        return keys, values, positions, {name: dense(t, index).transpose(2, 3) for name, t in self.state.items()}, True

    def rows(self, indices: Tensor) -> Held:
        """The rows `indices` (rows,) int64, in that order."""
        keys, values, positions, state, padded = self.dense()
        rest = {name: t[indices] for name, t in state.items()}
        return Held.of(keys[indices], values[indices], positions[indices], rest, padded)

    @property
    def counts(self) -> Tensor:
        """(rows, kv_heads) int64, tokens held."""
        return (self.positions >= 0).sum(-1) if self.whole is None else self.whole.counts

    def main(self) -> list[Tensor]:
        """Tensors of keys and values."""
        return [t for t in (self.keys, self.values, self.old_keys, self.old_values) if t is not None]

    def beside(self) -> list[Tensor]:
        """All other tensors."""
        counts = [] if self.whole is None else list({id(r): r.counts for r in (self.old, self.whole)}.values())
        return [self.positions, *self.state.values(), *counts]


def _wasted(positions: Tensor) -> float:
    """Padding as a share of the tokens held."""
    held = int((positions >= 0).sum())
    return positions.numel() / max(held, 1) - 1
