"""What the configuration of every search has, whatever its algorithm. Knows no algorithm.

Imports neither an algorithm nor its libraries: a job's configuration is read without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from namm_core.config import Range, Ranged


@dataclass(frozen=True)
class SearchConfig(Ranged):
    """Options that all searches share; an algorithm's own dataclass inherits them and adds its own."""

    algorithm: str
    """Which search: a module of `orchestrator.search.algorithms`, or of a plug-in's folder `searches`."""
    population: Annotated[int, Range(least=4)] = 32
    """Candidates in a generation."""
    sigma0: Annotated[float, Range(above=0)] = 0.065
    """First step size: standard deviation of each parameter, in the parameter's own unit."""
    seed: Annotated[int, Range(least=0, most=2**32 - 1)] = 0
    """Seed of the candidates' random numbers."""

    @property
    def elite(self) -> int:
        """How many of a generation's best candidates are learnt from by their rank; here, all of them."""
        return self.population

    @property
    def summary(self) -> str:
        """The search in a few words, for a job's plan."""
        return f"{self.algorithm}, sigma0 {self.sigma0:g}"

    def allowed_population(self, wanted: int) -> int:
        """The smallest population from `wanted` on that this algorithm can ask for; a restart's grows to it."""
        return wanted
