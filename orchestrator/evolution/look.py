"""A look at validation samples: how the search's mean does there, against the full cache, and which vector is best.

Knows no search state, workers or files.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.evolution.budgets import validation_budgets
from orchestrator.evolution.fitness import fitness_of, mean_of, task_scores
from orchestrator.evolution.race import FULL, complete, picked
from orchestrator.paired import paired_interval, plain
from orchestrator.protocols import Evaluate
from orchestrator.search.stage_rules import StagePlan
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef, SampleResult

LOOKED_AT = 3
"""Policies of a look at validation samples, the full cache among them."""


def looked_at(
    spec: JobSpec, stage: StagePlan, evaluate: Evaluate, policies: dict[str, PolicySpec], samples: list[SampleRef]
) -> dict[str, Any]:
    """What the validation samples say of policies, each against the full cache, as fields of a generation's record
    (plain JSON values); the best one counts. Empty where none has a finite fitness."""
    found = evaluate([*policies.values(), FULL], samples)
    usable = complete(found, list(range(len(samples))))
    *seen, base = (picked(row, usable) for row in found)
    values = [fitness_of(row, spec, stage.train, base) for row in seen]
    if not np.isfinite(values).any():
        return {}
    looks, sizes = {}, validation_budgets(spec, samples)
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
        if sizes:
            looks[name]["budgets"] = _by_budget(row, [sizes[samples[place]] for place in usable])
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


def _by_budget(row: list[SampleResult], budgets: list[float]) -> dict[str, float | None]:
    """Mean score of the samples of each budget, smallest first."""
    return {
        f"{size:g}": plain(mean_of([result for result, own in zip(row, budgets, strict=True) if own == size], "score"))
        for size in sorted(set(budgets))
    }
