"""Stages of a job (incremental evolution): what each is, when one ends, and whether its search starts anew.

Knows how many generations were told and what they came to; knows no task's meaning, no evaluation and no files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from namm_core.config import Range, Ranged
from orchestrator.search.config import SearchConfig

Sigma = Literal["reset", "keep"]
Part = Literal["all", "linear"]
Variant = Literal["diagonal", "isotropic", "full"]


@dataclass(frozen=True)
class StageSpec(Ranged):
    """A part of a job with tasks of its own; its search starts from the mean of the stage before, with the same
    frozen statistics (paper, section 4: incremental evolution)."""

    train: tuple[str, ...]
    """Tasks of this stage."""
    name: str | None = None
    """Folder of its checkpoint; None: stage1, stage2, ..."""
    generations: Annotated[int, Range(least=1)] = 30
    """Generations of this stage, at most."""
    samples: Annotated[int | None, Range(least=1)] = None
    """Samples of each task in a generation; None: `fitness.samples`."""
    population: Annotated[int | None, Range(least=4)] = None
    """Candidates in a generation; None: `search.population`."""
    sigma: Sigma = "reset"
    """First step size: `sigma0` again, or the one that the stage before ended with."""
    sigma0: Annotated[float | None, Range(above=0)] = None
    """First step size of this stage; None: `search.sigma0`."""
    part: Part = "all"
    """Which numbers are searched: all, or those in which the score is linear (the features' weights and the score's
    bias); the others stay as they are."""
    variant: Variant | None = None
    """Covariance that is learnt, for searches that have the choice; None: `search.variant`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma == "keep" and self.sigma0 is not None:
            raise ValueError("sigma keep goes on with the last step size: leave sigma0 out")
        if not self.train:
            raise ValueError("train must name at least one task")
        if len(set(self.train)) != len(self.train):
            raise ValueError(f"train names a task twice: {', '.join(self.train)}")


@dataclass(frozen=True)
class StagePlan:
    """A stage with nothing left open."""

    name: str
    train: tuple[str, ...]
    """Tasks of this stage."""
    generations: int
    """At most."""
    samples: int
    """Samples of each task in a generation."""
    population: int
    """Candidates in a generation of its first search; a restart's is larger."""
    sigma: Sigma
    """First step size: `sigma0`, or the one that the stage before ended with."""
    sigma0: float
    """Step size of a search that begins with its own."""
    part: Part
    """Which numbers are searched."""
    variant: Variant | None
    """Covariance that is learnt; None: as in the job's search."""


@dataclass(frozen=True)
class StopSpec(Ranged):
    """What ends a stage or the job before its generations are done; None: nothing does."""

    patience: Annotated[int | None, Range(above=0)] = None
    """Generations without a better validation fitness after which a stage's search ends; seen at validation looks."""
    sigma_below: Annotated[float | None, Range(above=0)] = None
    """Step size below which a stage's search ends."""
    evaluations: Annotated[int | None, Range(above=0)] = None
    """Evaluations that the job's search may ask for, the looks at validation samples included; it ends where another
    generation might exceed them. May be raised with --resume."""
    hours: Annotated[float | None, Range(above=0)] = None
    """Hours that the job's generations may take, over all its starts; looked at between two generations, so that the
    last one exceeds them. May be raised with --resume."""


@dataclass(frozen=True)
class RestartSpec(Ranged):
    """Restarts of a stage's search with a larger population (IPOP; Auger and Hansen, CEC 2005), where `stop.patience`
    or `stop.sigma_below` ended it and the stage has generations left. A restart begins where the stage began, with
    other random numbers and the stage's `sigma0`."""

    count: Annotated[int, Range(least=0)] = 0
    """Restarts of a stage, at most."""
    factor: Annotated[float, Range(least=1)] = 2.0
    """The population grows by it at each restart."""


@dataclass(frozen=True)
class End:
    """What is over after a generation, and why."""

    of: Literal["search", "stage", "job"]
    """`search`: the stage goes on with a restart."""
    reason: str


def search_of(base: SearchConfig, seed: int, stage: int, plan: StagePlan, restart: int, growth: float) -> SearchConfig:
    """The configuration of search number `restart` (0: the first one) of stage number `stage`, its step size as in
    `base`. Raises ValueError for a population that the algorithm cannot ask for, and for a variant of one that has
    none."""
    population = round(plan.population * growth**restart)
    if restart:
        population = base.allowed_population(population)
    seed += base.seed
    if stage or restart:  # other numbers in each search, the first one's as in a job without stages
        seed = int(hashlib.sha256(f"{seed} {stage} {restart}".encode()).hexdigest()[:8], 16)
    own: dict[str, Any] = {} if plan.variant is None else {"variant": plan.variant}
    if own and not hasattr(base, "variant"):
        raise ValueError(f"stages: search.algorithm {base.algorithm} has no variant; leave it out of {plan.name}")
    return replace(base, population=population, seed=seed, **own)


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
