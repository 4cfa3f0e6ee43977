"""A generation's record: what its candidates, the search's mean and the full cache did on the same samples.

Plain JSON values. Who sees which samples is settled in `race`; what is maximised, in `fitness`. Knows no search state,
workers or files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from orchestrator.evolution.fitness import finite, fitness_of, mean_of, task_scores
from orchestrator.evolution.race import Contestants, complete, picked, raced
from orchestrator.protocols import Evaluate
from orchestrator.search import racing
from orchestrator.search.stage_rules import StagePlan
from orchestrator.spec import JobSpec
from workers.unit import SampleRef


def compared(
    spec: JobSpec,
    stage: StagePlan,
    evaluate: Evaluate,
    contestants: Contestants,
    samples: list[SampleRef],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """A generation's record: candidates, the search's mean and the full cache on the same samples.

    progress: gets (results so far, results wanted). Raises ValueError when no candidate has a finite fitness.
    """
    results, dropped = raced(spec, stage, evaluate, contestants, samples, progress)
    *found, found_mean, found_full = results
    stayed = [i for i in range(len(found)) if i not in dropped]
    usable = complete([*(found[i] for i in stayed), found_mean, found_full], list(range(len(samples))))
    seen = [dropped[i].usable if i in dropped else usable for i in range(len(found))]
    rows = [picked(row, seen[i]) for i, row in enumerate(found)]
    bases = [picked(found_full, indices) for indices in seen]
    of_mean, of_full = picked(found_mean, usable), picked(found_full, usable)
    fitness = np.array([fitness_of(row, spec, stage.train, bases[i]) for i, row in enumerate(rows)])
    if not np.isfinite(fitness[stayed]).any():
        raise ValueError(
            f"no candidate has a finite fitness: of {len(samples)} samples {len(usable)} could be evaluated with the "
            "full cache; try model.dtype=float32 or other tasks, under another name"
        )
    behind = [i for i in dropped if np.isfinite(fitness[i])]
    fitness[behind] = racing.ranked_below(fitness[behind], fitness[stayed])
    raw, base = task_scores(of_mean, stage.train), task_scores(of_full, stage.train)
    saved = sum(one.saved for one in dropped.values())
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
        "asked": len(results) * len(samples) - saved,
    }
    if spec.racing.enabled:
        record |= {"dropped": len(dropped), "saved": saved, "saved_share": saved / (len(rows) * len(samples))}
    return record
