"""CMA-ES with a full covariance as the paper's implementation has it, in place of the parts of pycma that differ.

Equations are those of N. Hansen, *The CMA Evolution Strategy: A Tutorial* (arXiv 1604.00772). The methods that are
overridden are pycma 4.5's. Knows pycma; knows nothing of weights, missing candidates or configuration.
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cma
import numpy as np
from cma.sampler import GaussFullSampler
from cma.sigma_adaptation import CMAAdaptSigmaCSA


def learning_rates(dimension: int, mu_eff: float) -> dict[str, float]:
    """Learning rates of the rank-one and rank-mu updates, `c1` and `cmu` (eq. 57, 58).

    pycma adds 1/4 to the numerator of `cmu`, and shrinks `c1` for populations below 6.
    """
    c1 = 2 / ((dimension + 1.3) ** 2 + mu_eff)
    cmu = min(1 - c1, 2 * (mu_eff - 2 + 1 / mu_eff) / ((dimension + 2) ** 2 + mu_eff))
    return {"c1": c1, "cmu": cmu}


class Strategy(cma.CMAEvolutionStrategy):
    """pycma's strategy, which does not copy a covariance that is still being learnt: it is the sampler's, `sm.C`."""

    def _updateBDfromSM(self, sm_: GaussFullSampler | None = None) -> None:
        sampler = self.sm if sm_ is None else sm_
        if not isinstance(sampler, FullCovariance):
            super()._updateBDfromSM(sm_)
            return
        self.B, self.D, self.dC = sampler.B, sampler.D, sampler.variances


class FullCovariance(GaussFullSampler):
    """Full covariance that starts at exactly I (pycma's: within 1e-4), with the paper's learning rates.

    It learns in a thread of its own, while candidates are evaluated. In many dimensions, where it is decomposed
    anew only every so many generations, that too is done meanwhile, from what was learnt one generation before.
    """

    def __init__(self, dimension: np.ndarray, **options: Any) -> None:
        self.rarely = 10
        """Generations between two decompositions from which one that is a generation old will do."""
        self._held_mu_eff: float | None = None
        self._aside = ThreadPoolExecutor(1)  # one thread: what is handed in is done in that order
        self._learning: Future[None] | None = None
        self._decomposing: Future[tuple[np.ndarray, np.ndarray]] | None = None
        super().__init__(dimension, **options)
        self.C = np.eye(self.dimension)
        self.B = np.eye(self.dimension)
        self.D = np.ones(self.dimension)

    @property
    def C(self) -> np.ndarray:
        """(N, N) the covariance matrix, with all that was told."""
        if self._learning is not None:
            self._learning.result()
        return self._covariance

    @C.setter
    def C(self, value: np.ndarray) -> None:
        self._covariance, self._variances = value, value.diagonal().copy()

    @property
    def variances(self) -> np.ndarray:
        """(N,) the diagonal of C, which need not be waited for."""
        return self._variances

    def parameters(self, mueff: float | None = None, lam: int | None = None) -> dict[str, float]:
        """The learning rates for `mueff`, or those of the last call."""
        if mueff is not None:
            self._parameters = learning_rates(self.dimension, self._held_mu_eff or mueff)
        return self._parameters

    def hold_rates(self, mu_eff: float | None) -> None:
        """Keeps the learning rates at those for `mu_eff`, whatever the weights say; None: no longer."""
        self._held_mu_eff = mu_eff

    def update(self, vectors: list, weights: list, c1_times_delta_hsigma: float = 0) -> None:
        """As pycma's; the sum of products is left to the thread.

        `vectors`: steps of shape (N,), that of the evolution path first; `weights`: one for each, learning rates
        included.
        """
        steps, factors = np.asarray(vectors), np.array(weights)
        decay = 1 + c1_times_delta_hsigma - sum(factors)
        against = factors < 0
        norms = np.linalg.norm(steps[against] @ self.B / self.D, axis=1)
        factors[against] *= self.dimension / (norms + 1e-9) ** 2
        self._variances = decay * self._variances + factors @ steps**2
        self._learning = self._aside.submit(self._learn, steps, factors, decay)
        self.count_tell += 1

    def sample(self, number: int, *args: Any, **kwargs: Any) -> np.ndarray:
        """(number, N): steps drawn from C; where C will have to be decomposed before the next draw, that begins."""
        drawn = super().sample(number, *args, **kwargs)
        due_next = self.count_tell + 1 >= self.last_update + self.lazy_update_gap
        if due_next and self.lazy_update_gap >= self.rarely and self._decomposing is None:
            self._decomposing = self._aside.submit(self._decomposed)
        return drawn

    def _decompose_C(self) -> None:
        if self._decomposing is None:
            super()._decompose_C()
            return
        squares, vectors = self._decomposing.result()
        self._decomposing = None
        if squares[0] <= 0:
            super()._decompose_C()  # which knows what to do
            return
        self.B, self.D = vectors, np.sqrt(squares)
        self.count_eigen += 1

    def _learn(self, vectors: np.ndarray, weights: np.ndarray, decay: float) -> None:
        self._covariance *= decay
        self._covariance += np.dot(weights * vectors.T, vectors)

    def _decomposed(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues, ascending, and eigenvectors, of what has been learnt by now."""
        return self.eigenmethod((self._covariance + self._covariance.T) / 2)


class PathLength(CMAAdaptSigmaCSA):
    """Cumulative step-size adaptation with the tutorial's constants, which the paper's implementation uses.

    pycma 4.5 differs in c_sigma (n + mu_eff + 3 below the line), in the damping of large populations in few
    dimensions, and in the threshold of h_sigma.
    """

    def compute_cs(self, N: int, mueff: float) -> float:  # eq. 55
        """Decay of the evolution path."""
        return (mueff + 2) / (N + mueff + 5)

    def compute_damps(self, N: int, mueff: float, *args: Any, **kwargs: Any) -> float:  # eq. 55
        """Damping of the step size's change."""
        return 1 + 2 * max(0.0, math.sqrt((mueff - 1) / (N + 1)) - 1) + self.compute_cs(N, mueff)

    def hsig(self, es: cma.CMAEvolutionStrategy) -> bool:  # below eq. 45
        """Whether the path is short enough for the rank-one update to count in full."""
        self._update_ps(es)
        unbiased = np.linalg.norm(self.ps) / math.sqrt(1 - (1 - self.cs) ** (2 * es.countiter))
        return bool(unbiased < (1.4 + 2 / (es.N + 1)) * _chi(es.N))

    def update2(self, es: cma.CMAEvolutionStrategy, **kwargs: Any) -> float:  # eq. 44
        """Factor by which the step size changes."""
        self._update_ps(es)
        return math.exp(self.cs / self.damps * (np.linalg.norm(self.ps) / _chi(es.N) - 1))


def _chi(dimension: int) -> float:
    """Expected length of a standard normal vector, as the tutorial approximates it."""
    return math.sqrt(dimension) * (1 - 1 / (4 * dimension) + 1 / (21 * dimension**2))
