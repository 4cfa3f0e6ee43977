"""Racing: which candidates of a generation are clearly outside its elite, before they have seen all its samples.

Source: Heidrich-Meisner and Igel, *Hoeffding and Bernstein Races for Selecting Policies in Evolutionary Direct Policy
Search* (ICML 2009), with paired Student intervals in place of theirs. Knows numbers, no candidates, tasks or workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.special import stdtrit

from namm_core.config import Range, Ranged


@dataclass(frozen=True)
class RacingSpec(Ranged):
    """Whether clearly bad candidates stop early on a generation's samples, and what is clear."""

    enabled: bool = False
    """Whether candidates race; off: all of them see all samples."""
    first: Annotated[float, Range(above=0, below=1)] = 0.25
    """Share of each task's samples that all candidates see."""
    step: Annotated[float, Range(above=0)] = 0.25
    """Share of each task's samples between two further looks."""
    confidence: Annotated[float, Range(above=0, below=1)] = 0.98
    """Of each comparison, one-sided; not of a generation, whose decisions are many but depend on each other (simulated,
    0.98 kept the elite's ranks in 98 to 100 % of generations; a Bonferroni correction would save a third less)."""
    survivors: Annotated[float, Range(least=0, most=1)] = 0.5
    """Smallest share of the population that sees all samples; never fewer than the elite."""


def parts(spec: RacingSpec, samples: int) -> list[range]:
    """A task's samples in the order in which candidates see them, by looks: each look's own ones."""
    share, bounds = spec.first, [0]
    while spec.enabled and share < 1 - 1e-9:
        bounds.append(max(math.ceil(share * samples - 1e-9), bounds[-1] + 1))
        share += spec.step
    bounds = [bound for bound in bounds if bound < samples] + [samples]
    return [range(low, high) for low, high in zip(bounds, bounds[1:], strict=False)]


def dropped(values: np.ndarray, of: int, elite: int, fewest: int, confidence: float) -> list[int]:
    """Candidates that are clearly not among the `elite` best ones of all `of` samples, worst first.

    values: (candidates, seen), what each sample adds to a candidate's fitness, which is the mean over samples; rows
    with a value that is not finite are ignored. A candidate is dropped when at least `elite` others beat it beyond
    doubt: the lower bound of the paired difference, at `confidence`, lies above 0. As the mean over `of` samples is
    asked for, of which `seen` are known, the bound has the finite population correction sqrt(1 - seen / of). No fewer
    than `fewest` candidates stay.
    """
    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    values, seen = values[finite], values.shape[1]
    if seen < 2 or seen >= of or len(finite) <= max(elite, fewest):
        return []
    gaps, spreads = np.empty((2, len(finite), len(finite)))
    for i in range(len(finite)):
        differences = values - values[i]
        gaps[i], spreads[i] = differences.mean(axis=1), differences.std(axis=1, ddof=1)
    # Few samples of a coarse score may agree by chance: no pair counts as surer than the usual one.
    spreads = np.maximum(spreads, np.median(spreads[~np.eye(len(finite), dtype=bool)]))
    half = stdtrit(seen - 1, confidence) * spreads * math.sqrt((1 - seen / of) / seen)
    beaten = (gaps > half).sum(axis=1)  # gaps[i, j]: how much j is better than i
    worst_first = np.argsort(values.mean(axis=1), kind="stable")
    out = [int(finite[i]) for i in worst_first if beaten[i] >= elite]
    return out[: len(finite) - max(elite, fewest)]


def ranked_below(estimates: np.ndarray, survivors: np.ndarray) -> np.ndarray:
    """Estimates of dropped candidates, lowered together as far as needed to stand below all finite survivors."""
    finite = survivors[np.isfinite(survivors)]
    if not (len(estimates) and len(finite)):
        return estimates
    worst, top = finite.min(), estimates.max()
    # So far below that no rounding makes them equal.
    return estimates if top < worst else estimates - (top - worst) - 1e-6 * max(abs(top), abs(worst), 1.0)
