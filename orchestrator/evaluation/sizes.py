"""Brings a NAMM to a size, by one shift of its threshold that is found on samples which nothing else is measured on.

Knows how a threshold is shifted and looked at; how few looks are enough is for `calibration`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from orchestrator.evaluation.calibration import Calibration
from orchestrator.protocols import Evaluate
from workers.unit import PolicySpec, SampleRef


@dataclass(frozen=True)
class Sized:
    """A NAMM with its threshold shifted, and how it did on the samples that the shift was found on."""

    memory: PolicySpec
    shift: float
    """What the threshold was raised by, in units of the score; below 0 it was lowered."""
    kept: float
    """Mean kept fraction."""
    score: float
    """Mean score."""


class Sizing:
    """One NAMM and the samples by which it is brought to sizes.

    looked: is told, at each look, how many there were and what the last one kept. Raises ValueError where no sample
    could be evaluated.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        memory: PolicySpec,
        samples: list[SampleRef],
        looked: Callable[[int, float], None] = lambda looks, kept: None,
    ) -> None:
        self._evaluate, self._memory, self._samples, self._looked = evaluate, memory, samples, looked
        self._found: dict[float, Sized] = {}
        self._calibration = Calibration(self._kept)

    def as_it_is(self) -> Sized:
        """The NAMM, unchanged."""
        return self._found[0.0]

    def at_most(self, limit: float) -> Sized:
        """The NAMM as it is where it keeps at most `limit`; otherwise raised until it does."""
        return self._found[self._calibration.at_most(limit)]

    def at_each(self, budgets: Iterable[float]) -> dict[float, Sized]:
        """For each kept fraction the NAMM that comes nearest to it."""
        return {budget: self._found[shift] for budget, shift in self._calibration.shifts(budgets).items()}

    def _kept(self, shift: float) -> float:
        memory = shifted(self._memory, shift)
        (row,) = self._evaluate([memory], self._samples)
        results = [result for result in row if result is not None]
        if not results:
            raise ValueError("no validation sample could be evaluated: look at the warnings above")
        kept, score = (float(np.mean([getattr(result, name) for result in results])) for name in ("kept", "score"))
        self._found[shift] = Sized(memory, shift, kept, score)
        self._looked(len(self._found), kept)
        return kept


def shifted(namm: PolicySpec, shift: float) -> PolicySpec:
    """The NAMM with its threshold raised by `shift`, and nothing else changed.

    The last number of theta is the bias of the score (b3 of BAM), so that lowering it raises the threshold. Raises
    ValueError for a policy without theta.
    """
    if namm.theta is None:
        raise ValueError(f"{namm.name} has no theta: only a NAMM has a threshold")
    theta = namm.theta.copy()
    theta[-1] -= shift
    return dataclasses.replace(namm, theta=theta)
