"""Recombination weights of a ranking with ties: equals share what the ranks that they fill weigh.

It is what the update would be on average, were the order of equals drawn by lot; by the order in which they stand, some
would count for more than others for no reason. Knows pycma's weights; knows no fitness and no candidates.
"""

from __future__ import annotations

import numpy as np
from cma.recombination_weights import RecombinationWeights


class TiedWeights(RecombinationWeights):
    """`ranked`, finalised weights by rank, shared out within each group of equals; sizes: of the groups, best first.

    Unlike those of distinct ranks, what a candidate weighs in the mean (`positive_weights`, the shares of the weights
    above 0) and in the covariance (the list's items, the shares of all) may differ: in a group that the border of the
    elite goes through.
    """

    def __init__(self, ranked: RecombinationWeights, sizes: np.ndarray) -> None:
        list.__init__(self, _shares(np.array(ranked), sizes).tolist())
        self._in_mean = _shares(np.maximum(ranked, 0.0), sizes)
        self.mu = int((self._in_mean > 0).sum())
        self.mueff = 1 / float((self._in_mean**2).sum())
        self.debug, self.finalized = False, True

    @property
    def positive_weights(self) -> np.ndarray:
        """(mu,): weights of the best `mu` candidates in the mean, whose sum is 1."""
        return self._in_mean[: self.mu]


def _shares(weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Each group's mean, for each of its members."""
    first = np.cumsum(sizes) - sizes
    return np.repeat(np.add.reduceat(weights, first) / sizes, sizes)
