"""What a layer holds between two forward calls: keys, values, positions and state, without the padding.

Heads of unequal length are stored end to end (`EndToEnd`); the tokens that came since stand behind them, dense, so
that a decode step copies these alone. Where all heads hold equally many tokens, or nearly so, everything is dense
(`Dense`). Knows nothing of why a token is held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.layer.capacity import owned
from namm_core.layer.ragged import Ragged, dense
from namm_core.protocols import State

SPARE = 0.02
"""Padding, as a share of what is held, that is not worth storing heads end to end."""


@dataclass(frozen=True)
class Dense:
    """All heads in tensors of one width, each head's tokens to the right, padding in front.

    Nothing here is ever written into: a copy may share its tensors.
    """

    keys: Tensor
    """(rows, kv_heads, K, size)"""
    values: Tensor
    """(rows, kv_heads, K, value size)"""
    positions: Tensor
    """(rows, kv_heads, K) integers, true positions, padding -1."""
    state: State
    """(rows, kv_heads, n, K) each."""
    padded: bool
    """Whether some head holds padding."""

    def dense(self) -> Dense:
        """The same with positions in int64."""
        return Dense(self.keys, self.values, self.positions.long(), self.state, self.padded)

    def grown(self, content: Dense, new: int) -> Stored:
        """What is stored once `new` tokens more are held; content: the dense form of all of it."""
        return store(content)

    def rows(self, indices: Tensor) -> Stored:
        """The rows `indices` (rows,) int64, in that order."""
        state = {name: t[indices] for name, t in self.state.items()}
        keys, values, positions = self.keys[indices], self.values[indices], self.positions.long()[indices]
        return store(Dense(keys, values, positions, state, self.padded))

    def copied(self) -> Dense:
        """The same in tensors that nobody else holds."""
        state = {name: t.clone() for name, t in self.state.items()}
        return Dense(self.keys.clone(), self.values.clone(), self.positions.clone(), state, self.padded)

    @property
    def counts(self) -> Tensor:
        """(rows, kv_heads) int64, tokens held."""
        return (self.positions >= 0).sum(-1)

    def main(self) -> list[Tensor]:
        """Tensors of keys and values."""
        return [self.keys, self.values]

    def beside(self) -> list[Tensor]:
        """All other tensors."""
        return [self.positions, *self.state.values()]


@dataclass(frozen=True)
class EndToEnd:
    """Heads of unequal length one after the other without padding; keys and values of the newest tokens apart.

    Nothing here is ever written into: a copy may share its tensors.
    """

    old: Ragged
    """Which tokens `old_keys` and `old_values` are."""
    old_keys: Tensor
    """(old tokens, size)"""
    old_values: Tensor
    """(old tokens, value size)"""
    new_keys: Tensor
    """(rows, kv_heads, new, size), the tokens since."""
    new_values: Tensor
    """(rows, kv_heads, new, value size)"""
    all: Ragged
    """Which tokens `positions` and `state` are: the old ones and those since."""
    positions: Tensor
    """(all tokens,) int32"""
    state: State
    """(all tokens, n) each."""

    @classmethod
    def of(cls, content: Dense) -> EndToEnd:
        """Stores all of a dense form, heads end to end."""
        tokens, positions, state = _flat(content)
        old_keys, old_values = tokens.pack(content.keys), tokens.pack(content.values)
        new_keys, new_values = content.keys[:, :, :0].clone(), content.values[:, :, :0].clone()
        return cls(tokens.close(), old_keys, old_values, new_keys, new_values, tokens, positions, state)

    def dense(self) -> Dense:
        """All of it in tensors of one width; positions in int64."""
        index, _ = self.old.spread()
        keys = torch.cat([dense(self.old_keys, index), self.new_keys], dim=2)
        values = torch.cat([dense(self.old_values, index), self.new_values], dim=2)
        index, valid = self.all.spread()
        positions = dense(self.positions, index).long().masked_fill_(~valid, -1)
        state = {name: dense(t, index).transpose(2, 3) for name, t in self.state.items()}
        return Dense(keys, values, positions, state, padded=True)

    def grown(self, content: Dense, new: int) -> Stored:
        """What is stored once `new` tokens more are held; content: the dense form of all, nothing forgotten of it."""
        tokens, positions, state = _flat(content)
        since = slice(content.keys.shape[2] - self.new_keys.shape[2] - new, None)
        new_keys, new_values = content.keys[:, :, since].clone(), content.values[:, :, since].clone()
        old = self.old, self.old_keys, self.old_values
        return EndToEnd(*old, new_keys, new_values, tokens.close(), positions, state)

    def rows(self, indices: Tensor) -> Stored:
        """The rows `indices` (rows,) int64, in that order."""
        return self.dense().rows(indices)

    def copied(self) -> EndToEnd:
        """The same in tensors that nobody else holds; the counts, which never change, are shared."""
        old = self.old, self.old_keys.clone(), self.old_values.clone()
        state = {name: t.clone() for name, t in self.state.items()}
        return EndToEnd(*old, self.new_keys.clone(), self.new_values.clone(), self.all, self.positions.clone(), state)

    @property
    def counts(self) -> Tensor:
        """(rows, kv_heads) int64, tokens held."""
        return self.all.counts

    def main(self) -> list[Tensor]:
        """Tensors of keys and values."""
        return [self.new_keys, self.new_values, self.old_keys, self.old_values]

    def beside(self) -> list[Tensor]:
        """All other tensors."""
        counts = [self.all.counts] if self.old is self.all else [self.old.counts, self.all.counts]
        return [self.positions, *self.state.values(), *counts]


Stored = Dense | EndToEnd


def store(content: Dense) -> Stored:
    """A dense form as it is stored: heads end to end, unless there is next to no padding."""
    if content.padded and _wasted(content.positions) > SPARE:
        return EndToEnd.of(content)
    state = {name: owned(t) for name, t in content.state.items()}
    return Dense(owned(content.keys), owned(content.values), content.positions.int(), state, content.padded)


def _flat(content: Dense) -> tuple[Ragged, Tensor, State]:
    tokens = Ragged(content.positions >= 0)
    state = {name: tokens.pack(t.transpose(2, 3)) for name, t in content.state.items()}
    return tokens, tokens.pack(content.positions).int(), state


def _wasted(positions: Tensor) -> float:
    """Padding as a share of the tokens held."""
    held = int((positions >= 0).sum())
    return positions.numel() / max(held, 1) - 1
