"""Stages of a job (incremental evolution), when one ends, and whether its search starts anew.

Knows numbers of generations told, no tasks' meaning, no evaluation, no files.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.search.cma_es import SearchConfig


@dataclass(frozen=True)
class StageSpec:
    """A part of a job with tasks of its own; its search starts from the mean of the stage before, with the same
    frozen statistics (paper, section 4: incremental evolution)."""

    train: tuple[str, ...]
    """Tasks of this stage."""
    name: str | None = None
    """Folder of its checkpoint; None: stage1, stage2, ..."""
    generations: int = 30
    """Generations of this stage, at most."""
    samples: int | None = None
    """Samples of each task in a generation; None: `fitness.samples`."""
    population: int | None = None
    """Candidates in a generation; None: `search.population`."""
    sigma: Literal["reset", "keep"] = "reset"
    """First step size: `search.sigma0` again, or the one that the stage before ended with."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train must name at least one task")
        if len(set(self.train)) != len(self.train):
            raise ValueError(f"train names a task twice: {', '.join(self.train)}")
        for name, value, least in (
            ("generations", self.generations, 1),
            ("samples", self.samples, 1),
            ("population", self.population, 4),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")


@dataclass(frozen=True)
class StopSpec:
    """What ends a stage or the job before its generations are done; None: nothing does."""

    patience: int | None = None
    """Generations without a better validation fitness after which a stage's search ends; seen at validation looks."""
    sigma_below: float | None = None
    """Step size below which a stage's search ends."""
    evaluations: int | None = None
    """Evaluations that the job's search may ask for, the looks at validation samples included; it ends where another
    generation might exceed them. May be raised with --resume."""
    hours: float | None = None
    """Hours that the job's generations may take, over all its starts; looked at between two generations, so that the
    last one exceeds them. May be raised with --resume."""

    def __post_init__(self) -> None:
        for name in ("patience", "sigma_below", "evaluations", "hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")


@dataclass(frozen=True)
class RestartSpec:
    """Restarts of a stage's search with a larger population (IPOP; Auger and Hansen, CEC 2005), where `stop.patience`
    or `stop.sigma_below` ended it and the stage has generations left. A restart begins where the stage began, with
    other random numbers and `search.sigma0`."""

    count: int = 0
    """Restarts of a stage, at most."""
    factor: float = 2.0
    """The population grows by it at each restart."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be at least 0, not {self.count}")
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise ValueError(f"factor must be at least 1, not {self.factor}")


@dataclass(frozen=True)
class End:
    """What is over after a generation, and why."""

    of: Literal["search", "stage", "job"]
    """`search`: the stage goes on with a restart."""
    reason: str


def search_of(base: SearchConfig, seed: int, stage: int, spec: StageSpec, restart: int, growth: float) -> SearchConfig:
    """The configuration of a stage's search number `restart` (0: the first one), its step size as in `base`."""
    population = round(spec.population * growth**restart)
    if restart and base.mirrored:
        population += population % 2
    seed += base.seed
    if stage or restart:  # other numbers in each search, the first one's as in a job without stages
        seed = int(hashlib.sha256(f"{seed} {stage} {restart}".encode()).hexdigest()[:8], 16)
    return replace(base, population=population, seed=seed)


def stalled(stop: StopSpec, sigma: float, since_better: int) -> str | None:
    """Why a search that stands so has come to its end; since_better: generations since its best validation look."""
    if stop.sigma_below is not None and sigma < stop.sigma_below:
        return f"step size {sigma:.3g} below {stop.sigma_below:.3g}"
    if stop.patience is not None and since_better >= stop.patience:
        return f"no better validation fitness in {since_better} generations"
    return None


def spent(stop: StopSpec, evaluations: int, seconds: float | None) -> str | None:
    """Why the job's budget is over; evaluations: after another generation, at most; seconds: None where it is known
    that time did not end the job."""
    if stop.evaluations is not None and evaluations > stop.evaluations:
        return f"another generation might exceed the budget of {stop.evaluations:,} evaluations"
    if stop.hours is not None and seconds is not None and seconds >= 3600 * stop.hours:
        return f"the budget of {stop.hours:g} hours is spent"
    return None
