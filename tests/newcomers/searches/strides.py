"""Moves to the best candidate in strides of fixed length: a search from outside the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from namm_core.config import Range
from orchestrator.search.base import AskAndTell
from orchestrator.search.config import SearchConfig


@dataclass(frozen=True)
class StridesConfig(SearchConfig):
    """Options of the search."""

    algorithm: str = "strides"
    stride: Annotated[float, Range(above=0, most=1)] = 0.5
    """Share of the way to the best candidate that the mean goes."""


class Strides(AskAndTell):
    """Candidates are mean + sigma N(0, I)."""

    Config = StridesConfig
    config: StridesConfig

    def __init__(self, config: StridesConfig, start: np.ndarray) -> None:
        """start: (N,), the first mean."""
        super().__init__(config, start)
        self._generator, self._mean = np.random.RandomState(config.seed), self.start.copy()

    @property
    def mean(self) -> np.ndarray:
        """(N,) float32."""
        return self._mean.astype(np.float32)

    @property
    def sigma(self) -> float:
        """As configured, all the time."""
        return self.config.sigma0

    def _sample(self) -> np.ndarray:
        return self._mean + self.sigma * self._generator.randn(self.population, len(self._mean))

    def _learn(self, candidates: np.ndarray, fitness: np.ndarray) -> None:
        best = candidates[np.nanargmax(np.where(np.isfinite(fitness), fitness, np.nan))]
        self._mean = self._mean + self.config.stride * (best - self._mean)
