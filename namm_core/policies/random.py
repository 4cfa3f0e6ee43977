"""Random eviction: what any policy must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.policy import Scoring
from namm_core.protocols import State, View


@dataclass
class Random(Scoring):
    """Keeps `budget` tokens of each head by a fixed random rank of (seed, layer, head, position)."""

    settings = ({},)
    seed: int = 0
    """Seed of the ranks."""

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys): ranks; a position keeps its own as the text grows."""
        heads, longest = view.positions.shape[1], int(view.newest.max()) + 1
        # A power of two of draws, so that a position keeps its rank as the sequence grows.
        size = 1 << max(longest - 1, 1).bit_length()
        ranks = []
        for head in range(heads):
            ranks.append(_ranks(self.seed, view.layer, head, size))
        table = torch.stack(ranks).to(view.positions.device).expand(len(view.positions), -1, -1)
        return table.gather(-1, view.positions.clamp(min=0))


def _ranks(seed: int, layer: int, head: int, size: int) -> Tensor:
    """(size,) uniform numbers, a pure function of (seed, layer, head, position): splitmix64 of the position."""
    x = torch.arange(size, dtype=torch.int64) + ((seed * 1_000_003 + layer) * 1_009 + head) * (1 << 32)
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    x = x ^ ((x >> 31) & ((1 << 33) - 1))
    return (x >> 11).double()
