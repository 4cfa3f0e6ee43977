"""One generation's evaluations, candidates racing where the job says so, and one look at validation samples.

Both end as records of plain JSON values. Knows no search state, workers or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from orchestrator.evolution.fitness import contributions, finite, fitness_of, mean_of, task_scores
from orchestrator.paired import paired_interval, plain
from orchestrator.protocols import Evaluate, Results
from orchestrator.search import racing
from orchestrator.search.stage_rules import StagePlan
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef

FULL = PolicySpec("full")
LOOKED_AT = 3
"""Policies of a look at validation samples, the full cache among them."""


@dataclass(frozen=True)
class Dropped:
    """A candidate that a race left behind."""

    usable: list[int]
    """Samples by which it was judged."""
    saved: int
    """Evaluations that were not made."""


def compared(
    spec: JobSpec,
    stage: StagePlan,
    evaluate: Evaluate,
    candidates: list[PolicySpec],
    mean: PolicySpec,
    samples: list[SampleRef],
    elite: int,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """A generation's record: candidates, the search's mean and the full cache on the same samples.

    progress: gets (results so far, results wanted). Raises ValueError when no candidate has a finite fitness.
    """
    results, dropped = _raced(spec, stage, evaluate, [*candidates, mean, FULL], samples, elite, progress)
    *rows, of_mean, of_full = results
    stayed = [i for i in range(len(rows)) if i not in dropped]
    whole = [rows[i] for i in stayed] + [of_mean, of_full]
    usable = [i for i in range(len(samples)) if all(row[i] is not None for row in whole) and finite(of_full[i])]
    seen = {i: dropped[i].usable if i in dropped else usable for i in range(len(rows))}
    bases = {i: [of_full[j] for j in seen[i]] for i in seen}
    rows = [[row[j] for j in seen[i]] for i, row in enumerate(rows)]
    of_mean, of_full = ([row[j] for j in usable] for row in (of_mean, of_full))
    fitness = np.array([fitness_of(row, spec, stage.train, bases[i]) for i, row in enumerate(rows)])
    if not np.isfinite(fitness[stayed]).any():
        raise ValueError(
            f"no candidate has a finite fitness: of {len(samples)} samples {len(usable)} could be evaluated with the "
            "full cache; try model.dtype=float32 or other tasks, under another name"
        )
    behind = [i for i in dropped if np.isfinite(fitness[i])]
    fitness[behind] = racing.ranked_below(fitness[behind], fitness[stayed])
    raw, base = task_scores(of_mean, stage.train), task_scores(of_full, stage.train)
    record = {
        "fitness": [float(f) if np.isfinite(f) else None for f in fitness],
        "fitness_mean": float(np.nanmean(fitness)),
        "fitness_best": float(np.nanmax(fitness)),
        "fitness_std": float(np.nanstd(fitness)),
        "mean_fitness": fitness_of(of_mean, spec, stage.train, of_full),
        "mean_score": mean_of(of_mean, "score"),
        "full_fitness": fitness_of(of_full, spec, stage.train, of_full),
        "full_score": mean_of(of_full, "score"),
        "kept": mean_of(of_mean, "kept"),
        "kept_layers": np.mean([r.kept_layers for r in of_mean], axis=0).tolist(),
        "kept_candidates": float(np.mean([r.kept for row in rows for r in row])),
        "quarantined": len(samples) - len(usable),
        "not_finite": sum(not all(map(finite, row)) for row in [*rows, of_mean]),
        "tasks": raw,
        "base": base,
        "normalised": {task: raw[task] / (base[task] + spec.fitness.base_floor) for task in stage.train},
        "asked": len(results) * len(samples) - sum(d.saved for d in dropped.values()),
    }
    if spec.racing.enabled:
        saved = sum(d.saved for d in dropped.values())
        record |= {"dropped": len(dropped), "saved": saved, "saved_share": saved / (len(rows) * len(samples))}
    return record


def looked_at(
    spec: JobSpec, stage: StagePlan, evaluate: Evaluate, policies: dict[str, PolicySpec], samples: list[SampleRef]
) -> dict[str, Any]:
    """What the validation samples say of policies, each against the full cache; the best one counts. Empty where none
    has a finite fitness."""
    *seen, base = evaluate([*policies.values(), FULL], samples)
    usable = [i for i in range(len(samples)) if all(row[i] is not None for row in (*seen, base)) and finite(base[i])]
    *seen, base = [[row[i] for i in usable] for row in (*seen, base)]
    values = [fitness_of(row, spec, stage.train, base) for row in seen]
    if not np.isfinite(values).any():
        return {}
    looks = {}
    for name, row, value in zip(policies, seen, values, strict=True):
        difference, *interval = paired_interval(np.array([r.score - b.score for r, b in zip(row, base, strict=True)]))
        looks[name] = {
            "fitness": plain(value),
            "score": plain(mean_of(row, "score")),
            "kept": mean_of(row, "kept"),
            "difference": plain(difference),
            "interval": list(map(plain, interval)),
            "tasks": {task: plain(score) for task, score in task_scores(row, stage.train).items()},
        }
    first = int(np.nanargmax(values))
    chosen = list(policies)[first]
    return {
        "validation_of": chosen,
        "validation_fitness": values[first],
        "validation_score": mean_of(seen[first], "score"),
        "validation_kept": mean_of(seen[first], "kept"),
        "validation_full": mean_of(base, "score"),
        "validation_full_fitness": fitness_of(base, spec, stage.train, base),
        "validation_difference": looks[chosen]["difference"],
        "validation_interval": looks[chosen]["interval"],
        "validation_looks": looks,
        "validation_base": task_scores(base, stage.train),
    }


def _raced(
    spec: JobSpec,
    stage: StagePlan,
    evaluate: Evaluate,
    policies: list[PolicySpec],
    samples: list[SampleRef],
    elite: int,
    progress: Callable[[int, int], None],
) -> tuple[Results, dict[int, Dropped]]:
    """Results of candidates, mean and full cache, None where there is none; and who was dropped on the way.

    A pure function of the results, so that a job that starts again drops the same ones.
    """
    rounds = _rounds(spec, stage, samples)
    candidates = len(policies) - 2
    fewest = max(elite, math.ceil(spec.racing.survivors * candidates))
    rows: Results = [[None] * len(samples) for _ in policies]
    alive, seen, dropped = list(range(len(policies))), [], {}
    done, wanted = 0, len(policies) * len(samples)

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done, wanted)

    for number, part in enumerate(rounds, 1):
        for i, row in zip(
            alive, evaluate([policies[i] for i in alive], [samples[j] for j in part], count), strict=True
        ):
            for j, result in zip(part, row, strict=True):
                rows[i][j] = result
        seen += part
        if number == len(rounds):
            break
        usable = [j for j in seen if all(rows[i][j] is not None for i in alive) and finite(rows[-1][j])]
        base = [rows[-1][j] for j in usable]
        if {r.task for r in base} != set(stage.train):
            continue
        racers = [[rows[i][j] for j in usable] for i in alive[:-2]]
        sick = [n for n, row in enumerate(racers) if not all(map(finite, row))]  # missing, whatever follows
        values = np.array([contributions(row, spec, stage.train, base) for row in racers])
        values[sick] = np.nan
        of = len(samples) - (len(seen) - len(usable))
        out = sick + racing.dropped(values, of, elite, fewest, spec.racing.confidence)
        left = len(samples) - len(seen)
        dropped |= {alive[n]: Dropped(usable, left) for n in out}
        alive = [i for n, i in enumerate(alive) if n not in out]
        wanted -= left * len(out)
    return rows, dropped


def _rounds(spec: JobSpec, stage: StagePlan, samples: list[SampleRef]) -> list[list[int]]:
    """Samples by number, in the order in which candidates see them; of every task a like share in each round."""
    by_task = [[i for i, ref in enumerate(samples) if ref.task == task] for task in stage.train]
    parts = [[[mine[j] for j in part] for part in racing.parts(spec.racing, len(mine))] for mine in by_task if mine]
    return [[i for part in together for i in part] for together in zip_longest(*parts, fillvalue=())]
