"""What the scorer sees of a cached token: sines and cosines of its age, then its normalised spectrogram.

By tensor operations for all tokens at once, or, where loops are compiled, for some heads at a time: newest first, in
the layout of their scorer. docs/memory.md 5 to 7. Knows nothing of scores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from namm_core.loops import compiled, plain
from namm_core.statistics import FeatureStatistics

PAPERS = ("age", "spectrum")
"""The features that these are, by name: computed together, in loops where they serve."""


@dataclass(frozen=True)
class Tokens:
    """All cached tokens of a layer; columns ascend by position, padding (-1) in front."""

    average: Tensor
    """(rows, kv_heads, frequencies, columns), moving average of the spectrogram."""
    positions: Tensor
    """(rows, kv_heads, columns) int64"""
    newest: Tensor
    """(rows,) int64, position of the newest token."""
    ages: Tensor
    """(longer than any position, age_dim), from `ages`."""
    statistics: FeatureStatistics | None

    @property
    def loops(self) -> bool:
        """Whether `write` serves."""
        return plain(self.average, self.ages)

    def embeddings(self) -> Tensor:
        """(rows, kv_heads, columns, features), by tensor operations."""
        age = (self.newest[:, None, None] - self.positions).clamp(min=0).masked_fill(self.positions < 0, 0)
        features = self.average.transpose(-1, -2)
        features = features if self.statistics is None else self.statistics.normalise(features)
        return torch.cat([self.ages[age], features], dim=-1)

    def write(self, heads: np.ndarray, widths: np.ndarray, out: Tensor) -> np.ndarray:
        """Embeddings of some heads, and a one behind each, into out (heads, tokens, size), newest token first.

        heads: (n,) int64, indices into the heads of all rows, end to end; widths: (n,) int64, their tokens; out: zeros,
        of which the rest stays zero. Returns (2, n, size): the least and the most of each number over a head's tokens.
        """
        ends = np.empty((2, len(heads), out.shape[2]), np.float32)
        ends[0], ends[1] = np.inf, -np.inf
        _loop()(*self._arrays, heads, widths, out.numpy(), ends)
        return ends

    @functools.cached_property
    def _arrays(self) -> list[np.ndarray]:
        frequencies = self.average.shape[2]
        if self.statistics is None:
            mean, factors = torch.zeros(frequencies), torch.ones(frequencies)
        else:
            mean, factors = self.statistics.mean.cpu(), 1 / self.statistics.deviation.cpu()
        positions = self.positions.long()
        return [t.numpy() for t in (self.average, positions, self.newest, self.ages, mean, factors)]


def ages(longest: int, size: int, period: int) -> Tensor:
    """(longest, size): sines, then cosines, of ages in tokens from 0 on; docs/memory.md 6."""
    j = torch.arange(size // 2, dtype=torch.float64)
    angle = torch.arange(longest, dtype=torch.float64)[:, None] * float(period) ** (-j / (size // 2))
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


@functools.cache
def _loop() -> Callable:
    """The loop of `write`."""

    @compiled(
        "void(float32[:,:,:,:], int64[:,:,:], int64[:], float32[:,::1], float32[::1], float32[::1], int64[::1], "
        "int64[::1], float32[:,:,::1], float32[:,:,::1])"
    )
    def write(average, positions, newest, ages, mean, factors, heads, widths, out, ends):
        kv_heads, columns = average.shape[1], average.shape[3]
        half, size = ages.shape[1], out.shape[2]
        one = half + len(mean)
        for i in range(len(heads)):
            row, head, width = heads[i] // kv_heads, heads[i] % kv_heads, widths[i]
            least, most = ends[0, i], ends[1, i]
            for start in range(0, width, 64):  # few enough to stay in the cache's first level
                stop = min(start + 64, width)
                first, last, to = columns - stop, columns - start, out[i, start:stop]
                at = positions[row, head, first:last][::-1]
                for token in range(stop - start):
                    place, age = to[token], ages[max(newest[row] - at[token], 0)]
                    for j in range(half):
                        place[j] = age[j]
                    place[one] = 1
                for f in range(len(mean)):
                    values, places = average[row, head, f, first:last][::-1], to[:, half + f]
                    middle, factor = mean[f], factors[f]
                    for token in range(stop - start):
                        places[token] = (values[token] - middle) * factor
                for token in range(stop - start):
                    place = to[token]
                    for j in range(size):
                        x = place[j]
                        least[j] = x if x < least[j] else least[j]
                        most[j] = x if x > most[j] else most[j]

    return write
