"""What every search does the same: candidates stay until they are told, what is told is checked, generations count.

Knows shapes and missing values; how candidates are drawn, and what is learnt from them, is the algorithm's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from orchestrator.search.config import SearchConfig


class AskAndTell(ABC):
    """A `Search` (`orchestrator.protocols`) that lacks four members: `mean`, `sigma`, `_sample` and `_learn`.

    `start`: (N,) finite numbers, the first mean. Raises ValueError for another shape.
    Whoever inherits must stay a pure function of configuration, start and the fitness told. Its random numbers come
    from a `numpy.random.RandomState(config.seed)` of its own, whose stream is frozen (NEP 19; a Generator's is not).
    """

    Config: ClassVar[type[SearchConfig]]
    """Dataclass of the algorithm's options."""

    def __init__(self, config: SearchConfig, start: np.ndarray) -> None:
        start = np.asarray(start, dtype=np.float64)
        if start.ndim != 1 or len(start) < 2 or not np.isfinite(start).all():
            odd = np.count_nonzero(~np.isfinite(start))
            raise ValueError(
                f"a search starts from one vector of 2 or more finite numbers, not from shape {start.shape} "
                f"with {odd} that are not finite"
            )
        self.config = config
        self.start = start
        """(N,) float64: the first mean."""
        self.generation = 0
        """Generations told so far."""
        self._asked: np.ndarray | None = None

    @property
    @abstractmethod
    def mean(self) -> np.ndarray:
        """(N,) float32: the centre of the distribution, the vector to deploy."""

    @property
    @abstractmethod
    def sigma(self) -> float:
        """Step size, in the parameters' unit."""

    @property
    def population(self) -> int:
        """Candidates in a generation."""
        return self.config.population

    @property
    def elite(self) -> int:
        """How many of a generation's best candidates the search learns from by their rank."""
        return self.config.elite

    def ask(self) -> np.ndarray:
        """(population, N) float32: the candidates of this generation, the same ones until they are told."""
        if self._asked is None:
            self._asked = np.asarray(self._sample(), dtype=np.float32)
        return self._asked.copy()

    def tell(self, fitness: np.ndarray, candidates: np.ndarray | None = None) -> None:
        """Learns from the generation that was asked, and moves on to the next.

        `fitness`: (population,), larger is better; a candidate whose fitness is not finite is missing.
        `candidates`: (population, N), where others than the asked ones were evaluated.
        Raises ValueError where no fitness is finite, for a wrong shape, or where nothing was asked.
        """
        if self._asked is None:
            raise ValueError("tell follows ask: no generation is open")
        fitness = np.asarray(fitness, dtype=np.float64)
        candidates = self._asked if candidates is None else np.asarray(candidates)
        if fitness.shape != (self.population,) or candidates.shape != self._asked.shape:
            raise ValueError(
                f"fitness must have shape ({self.population},) and candidates {self._asked.shape}, "
                f"not {fitness.shape} and {candidates.shape}"
            )
        if not np.isfinite(fitness).any():
            raise ValueError(f"generation {self.generation}: no candidate has a finite fitness")
        self._learn(candidates.astype(np.float64), fitness)
        self.generation += 1
        self._asked = None

    @abstractmethod
    def _sample(self) -> np.ndarray:
        """(population, N): draws a generation; they are evaluated, and told, rounded to float32."""

    @abstractmethod
    def _learn(self, candidates: np.ndarray, fitness: np.ndarray) -> None:
        """Learns from candidates (population, N) float64 and their fitness (population,) float64, larger is better.

        A fitness that is not finite is missing; at least one is finite. Where too few are, the distribution must stay
        as it is: a generation that teaches nothing is no error.
        """
