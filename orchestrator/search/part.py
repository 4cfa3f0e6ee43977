"""A search over a part of a vector: any search, on the numbers that are searched; the others stay as they are.

Knows which numbers these are, and neither how they are searched nor what any of them means.
"""

from __future__ import annotations

import numpy as np

from orchestrator.protocols import Search
from orchestrator.search import lookup
from orchestrator.search.config import SearchConfig


class PartSearch(Search):
    """A `Search` over vectors of N numbers that changes only a part of them.

    `start`: (N,) finite numbers, the first mean; `part`: (N,) bool, the numbers that are searched. Raises ValueError
    where they do not fit, and where fewer than two numbers are searched.
    """

    def __init__(self, config: SearchConfig, start: np.ndarray, part: np.ndarray) -> None:
        if part.dtype != bool or part.shape != np.shape(start):
            raise ValueError(f"part must be bool of shape {np.shape(start)}, not {part.dtype} of shape {part.shape}")
        self._whole, self._part = np.asarray(start, np.float32), part
        self.inner = lookup.started(config, np.asarray(start, np.float64)[part])
        """The search over the part alone."""

    @property
    def population(self) -> int:
        """Candidates in a generation."""
        return self.inner.population

    @property
    def elite(self) -> int:
        """How many of the best candidates are learnt from by their rank."""
        return self.inner.elite

    @property
    def generation(self) -> int:
        """Generations told so far."""
        return self.inner.generation

    @property
    def mean(self) -> np.ndarray:
        """(N,) float32: the start with the part's mean in its place."""
        return self._placed(self.inner.mean[None])[0]

    @property
    def sigma(self) -> float:
        """Step size, in the parameters' unit."""
        return self.inner.sigma

    def ask(self) -> np.ndarray:
        """(population, N) float32: the candidates of this generation."""
        return self._placed(self.inner.ask())

    def tell(self, fitness: np.ndarray, candidates: np.ndarray | None = None) -> None:
        """See `Search.tell`; of other candidates than the asked ones, only the part that is searched is looked at."""
        self.inner.tell(fitness, None if candidates is None else np.asarray(candidates)[:, self._part])

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        """(rows, N) float32 from (rows, n): the part of each row in its place."""
        whole = np.tile(self._whole, (len(rows), 1))
        whole[:, self._part] = rows
        return whole
