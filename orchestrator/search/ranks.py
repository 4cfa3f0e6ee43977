"""Ranks of fitness values, in which ties are equal. Knows numbers alone."""

from __future__ import annotations

import numpy as np


def shared_ranks(fitness: np.ndarray) -> np.ndarray:
    """(n,) rank of each finite value, 0 for the worst; equal values share the mean of the ranks that they fill."""
    _, group, sizes = np.unique(fitness, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes) - 1
    return (last - (sizes - 1) / 2)[group]


def centred_ranks(fitness: np.ndarray) -> np.ndarray:
    """(n,) ranks brought to -1/2 (worst) to 1/2 (best), whose sum is 0; n is 2 or more (Salimans et al., section 2)."""
    return shared_ranks(fitness) / (len(fitness) - 1) - 0.5
