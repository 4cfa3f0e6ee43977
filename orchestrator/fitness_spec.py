"""What a search maximises, as a job says it: which measure, at which sizes, on how many samples.

Knows no results; what is computed from them is in `evolution.fitness`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from namm_core.config import Range, Ranged

Measure = Literal["score", "logprob", "probability"]

BUDGETS = (0.1, 0.2, 0.3, 0.5)
"""Kept fractions that a memory with a budget is evolved at, where its job names none."""


@dataclass(frozen=True)
class FitnessSpec(Ranged):
    """What the search maximises."""

    measure: Measure = "score"
    """Task score; mean log-probability of the reference answer; or its exponential, which a few hopeless samples
    do not dominate."""
    mix: dict[str, float] | None = None
    """Weights of several measures, in place of `measure`: {probability: 0.7, score: 0.3}; only their ratios count."""
    budgets: tuple[float, ...] | None = None
    """Kept fractions, with `memory.selection: budget` and nothing else: each sample of a generation gets one of them,
    the same for all candidates, and each is as often as the others; None: 0.1, 0.2, 0.3 and 0.5."""
    kept_weight: float = 0.0
    """Subtracted from the fitness: this times the kept fraction beyond `kept_free`."""
    kept_free: float = 0.0
    """Kept fraction that costs nothing."""
    samples: Annotated[int, Range(least=1)] = 6
    """Samples of each task in a generation, the same ones for all candidates."""
    statistics_samples: Annotated[int, Range(least=1)] = 8
    """Training prompts from which the feature statistics are collected, of each task of the first stage."""
    normalise: bool = False
    """Whether a task counts as its mean over that of the full cache on the same samples (the paper's fitness)."""
    base_floor: Annotated[float, Range(above=0)] = 1e-7
    """Added to the full cache's mean before `normalise` divides by it, so that a task which it cannot do is no division
    by zero (the paper's value; a larger one keeps tasks with a tiny base from deciding alone)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mix is not None:
            _check_mix(self.mix)
        if self.budgets is not None:
            _check_budgets(self.budgets)
        if self.normalise and "logprob" in self.weights:
            raise ValueError(
                "fitness.normalise needs fitness.measure score or probability: a ratio of log-probabilities "
                "has no meaning"
            )

    @property
    def weights(self) -> dict[str, float]:
        """What is measured, and the weight of each, which add up to 1."""
        if self.mix is None:
            return {self.measure: 1.0}
        total = math.fsum(self.mix.values())
        return {measure: weight / total for measure, weight in self.mix.items()}


def _check_mix(mix: dict[str, float]) -> None:
    known = get_args(Measure)
    if not mix or any(measure not in known for measure in mix):
        raise ValueError(f"mix must name measures ({', '.join(known)}) with their weights, not {mix}")
    if not all(math.isfinite(weight) and weight > 0 for weight in mix.values()):
        raise ValueError(f"mix must have weights above 0, not {mix}")
    if "logprob" in mix and len(mix) > 1:
        raise ValueError("mix has logprob beside others: it has no bounds and would decide alone; take probability")


def _check_budgets(budgets: tuple[float, ...]) -> None:
    if not budgets:
        raise ValueError("budgets must name at least one kept fraction")
    for budget in budgets:
        if not 0 < budget < 1:
            raise ValueError(f"budgets must lie between 0 and 1, not {budget}")
