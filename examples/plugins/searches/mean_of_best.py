"""Mean of the best: a plain evolution strategy, (mu/mu, lambda), whose step size shrinks by a fixed factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from namm_core.config import Range
from orchestrator.search.base import AskAndTell
from orchestrator.search.config import SearchConfig


@dataclass(frozen=True)
class MeanOfBestConfig(SearchConfig):
    """The options of the search, as a job gives them beside `algorithm: mean_of_best`."""

    algorithm: str = "mean_of_best"
    decay: Annotated[float, Range(above=0, most=1)] = 0.98
    """Factor of the step size from one generation to the next."""

    @property
    def elite(self) -> int:
        """A quarter of the population, the best, makes the next mean."""
        return max(self.population // 4, 1)


class MeanOfBest(AskAndTell):
    """Candidates are mean + sigma N(0, I); the next mean is that of the best quarter.

    A pure function of its configuration, its start and the fitness told, so that a job can be resumed to the bit.
    """

    Config = MeanOfBestConfig
    config: MeanOfBestConfig

    def __init__(self, config: MeanOfBestConfig, start: np.ndarray) -> None:
        """start: (N,), the first mean."""
        super().__init__(config, start)
        self._generator = np.random.RandomState(config.seed)
        self._mean, self._sigma = self.start.copy(), config.sigma0

    @property
    def mean(self) -> np.ndarray:
        """(N,) float32, the vector to deploy."""
        return self._mean.astype(np.float32)

    @property
    def sigma(self) -> float:
        """Standard deviation of each parameter."""
        return self._sigma

    def _sample(self) -> np.ndarray:
        return self._mean + self._sigma * self._generator.randn(self.population, len(self._mean))

    def _learn(self, candidates: np.ndarray, fitness: np.ndarray) -> None:
        best_first = np.argsort(-np.where(np.isfinite(fitness), fitness, -np.inf), kind="stable")
        told = min(self.elite, int(np.isfinite(fitness).sum()))  # at least one is finite
        self._mean = candidates[best_first[:told]].mean(axis=0)
        self._sigma *= self.config.decay
