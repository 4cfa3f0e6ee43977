"""From results to fitness: what a job maximises. Knows no search, workers or files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.spec import JobSpec
from workers.unit import SampleResult


def fitness_of(
    results: list[SampleResult],
    spec: JobSpec,
    tasks: Sequence[str] | None = None,
    base: list[SampleResult] | None = None,
) -> float:
    """Mean over tasks of the mean over samples, less the price of what is kept; NaN when a task has no result, or a
    result is not finite.

    tasks: None for all that the job trains on; base: the full cache's results on the same samples, over whose mean a
    task's mean is divided where `fitness.normalise` says so (paper, section 4).
    """
    tasks = tasks or spec.train
    rows = [[r for r in results if r.task == task] for task in tasks]
    if not all(rows) or not all(map(finite, results)):
        return float("nan")
    scales, weights = _scales(spec, tasks, base), spec.fitness.weights
    means = [np.mean([_measured(r, weights) for r in row]) for row in rows]
    value = float(np.mean([mean / scale for mean, scale in zip(means, scales, strict=True)]))
    kept = float(np.mean([mean_of(row, "kept") for row in rows]))
    return value - spec.fitness.kept_weight * max(kept - spec.fitness.kept_free, 0.0)


def contributions(
    results: list[SampleResult], spec: JobSpec, tasks: Sequence[str], base: list[SampleResult]
) -> np.ndarray:
    """(samples,): what each result adds to the fitness, whose mean over samples is `fitness_of`.

    Every task must have results. The price of what is kept is linear within a candidate: it is charged to all samples
    or to none.
    """
    weights = spec.fitness.weights
    scales = dict(zip(tasks, _scales(spec, tasks, base), strict=True))
    counts = {task: sum(r.task == task for r in results) for task in tasks}
    shares = np.array([len(results) / (len(tasks) * counts[r.task]) for r in results])
    values = np.array([_measured(r, weights) / scales[r.task] for r in results])
    beyond = np.array([r.kept for r in results]) - spec.fitness.kept_free
    charged = spec.fitness.kept_weight if (shares * beyond).mean() > 0 else 0.0
    return shares * (values - charged * beyond)


def task_scores(results: list[SampleResult], tasks: Sequence[str]) -> dict[str, float]:
    """Mean score of each task."""
    return {task: mean_of([r for r in results if r.task == task], "score") for task in tasks}


def mean_of(results: Sequence[SampleResult], name: str) -> float:
    """Mean of one number over results; NaN of none."""
    return float(np.mean([getattr(r, name) for r in results])) if results else float("nan")


def finite(result: SampleResult) -> bool:
    """Whether a result is a number that can be compared."""
    return math.isfinite(result.logprob) and math.isfinite(result.score)


def _scales(spec: JobSpec, tasks: Sequence[str], base: list[SampleResult] | None) -> list[float]:
    """What a task's mean is divided by."""
    if not spec.fitness.normalise:
        return [1.0] * len(tasks)
    assert base is not None, "a normalised fitness needs the full cache's results"
    weights, floor = spec.fitness.weights, spec.fitness.base_floor
    return [float(np.mean([_measured(r, weights) for r in base if r.task == task])) + floor for task in tasks]


def _measured(result: SampleResult, weights: Mapping[str, float]) -> float:
    """What a result is worth: the measures' weighted sum."""
    return sum(weight * _measure(result, name) for name, weight in weights.items())


def _measure(result: SampleResult, name: str) -> float:
    return math.exp(result.logprob) if name == "probability" else getattr(result, name)
