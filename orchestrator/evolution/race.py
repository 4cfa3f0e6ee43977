"""Who of a generation sees which samples: all of them, or, where candidates race, more and more of them.

Asks for evaluations, and leaves behind whom `search.racing` finds clearly beaten. Knows no search state and no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from orchestrator.evolution.fitness import contributions, finite
from orchestrator.protocols import Evaluate, Results
from orchestrator.search import racing
from orchestrator.search.stage_rules import StagePlan
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef, SampleResult

FULL = PolicySpec("full")


@dataclass(frozen=True)
class Contestants:
    """Whom a generation compares, on the same samples."""

    candidates: list[PolicySpec]
    mean: PolicySpec
    """The search's mean, which never leaves the race, as the full cache never does."""
    elite: int
    """How many of the best candidates must see all samples, since the search learns from their rank."""

    @property
    def policies(self) -> list[PolicySpec]:
        """Candidates, mean and full cache."""
        return [*self.candidates, self.mean, FULL]


@dataclass(frozen=True)
class Dropped:
    """A candidate that a race left behind."""

    usable: list[int]
    """Samples, by number, by which it was judged."""
    saved: int
    """Evaluations that were not made."""


def raced(
    spec: JobSpec,
    stage: StagePlan,
    evaluate: Evaluate,
    contestants: Contestants,
    samples: list[SampleRef],
    progress: Callable[[int, int], None],
) -> tuple[Results, dict[int, Dropped]]:
    """Results of candidates, mean and full cache, None where there is none; and by number the candidates that were
    dropped on the way.

    A pure function of the results, so that a job that starts again drops the same ones. progress: gets (results so
    far, results wanted).
    """
    policies, rounds = contestants.policies, _rounds(spec, stage, samples)
    fewest = max(contestants.elite, math.ceil(spec.racing.survivors * len(contestants.candidates)))
    rows: Results = [[None] * len(samples) for _ in policies]
    dropped: dict[int, Dropped] = {}
    alive, seen = list(range(len(policies))), list[int]()
    done, wanted = 0, len(policies) * len(samples)

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, wanted)

    for number, part in enumerate(rounds, 1):
        found = evaluate([policies[i] for i in alive], [samples[j] for j in part], count)
        for i, row in zip(alive, found, strict=True):
            for j, result in zip(part, row, strict=True):
                rows[i][j] = result
        seen += part
        if number == len(rounds):
            break
        usable = complete([rows[i] for i in alive], seen)
        base = picked(rows[-1], usable)
        if {r.task for r in base} != set(stage.train):
            continue
        racers = [picked(rows[i], usable) for i in alive[:-2]]
        sick = [n for n, racer in enumerate(racers) if not all(map(finite, racer))]  # missing, whatever follows
        values = np.array([contributions(racer, spec, stage.train, base) for racer in racers])
        values[sick] = np.nan
        of = len(samples) - (len(seen) - len(usable))
        out = sick + racing.dropped(values, of, contestants.elite, fewest, spec.racing.confidence)
        left = len(samples) - len(seen)
        dropped |= {alive[n]: Dropped(usable, left) for n in out}
        alive = [i for n, i in enumerate(alive) if n not in out]
        wanted -= left * len(out)
    return rows, dropped


def complete(rows: Results, samples: list[int]) -> list[int]:
    """Those of the samples, by number, that every row has a result of; the last row is the full cache's, and must be
    finite: without it a sample compares nothing."""
    *others, full = rows
    return [j for j in samples if all(row[j] is not None for row in others) and _comparable(full[j])]


def picked(row: list[SampleResult | None], samples: list[int]) -> list[SampleResult]:
    """A row's results of samples that it has."""
    return [result for j in samples if (result := row[j]) is not None]


def _comparable(result: SampleResult | None) -> bool:
    """Whether there is a result, and it is a number that can be compared."""
    return result is not None and finite(result)


def _rounds(spec: JobSpec, stage: StagePlan, samples: list[SampleRef]) -> list[list[int]]:
    """Samples by number, in the order in which candidates see them; each round has a like share of every task's."""
    by_task = [[i for i, ref in enumerate(samples) if ref.task == task] for task in stage.train]
    parts = [[[mine[j] for j in part] for part in racing.parts(spec.racing, len(mine))] for mine in by_task if mine]
    return [[i for part in together for i in part] for together in zip_longest(*parts, fillvalue=())]
