"""The generation loop: ask, evaluate, tell, and now and then look at the mean on validation samples.

Everything asked here is a pure function of the job, so that a job which starts again tells the search what it was
told before, finds other answers in the journal, and arrives at the same bits. Knows nothing of Ray, MLflow or files.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from orchestrator.search import Search
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef, SampleResult

STATISTICS_SAMPLES = 1_000
"""The first training samples of each task are for the feature statistics; generations start behind them."""

Results = list[list[SampleResult | None]]


class Evaluate(Protocol):
    """Results[policy][sample]; None where a sample could not be evaluated."""

    def __call__(
        self, policies: list[PolicySpec], samples: list[SampleRef], progress: Callable[[int], None] = ...
    ) -> Results: ...


@dataclass
class Outcome:
    """What an evolution ends with."""

    best: PolicySpec
    """The mean, or average of recent means, with the best fitness on the validation samples."""
    best_generation: int
    """Generations told when it was looked at."""
    last: PolicySpec
    """The mean at the end."""
    generations: list[dict[str, Any]] = field(default_factory=list)
    """One record a generation, plain JSON values."""


def evolve(
    spec: JobSpec,
    evaluate: Evaluate,
    statistics: tuple[np.ndarray, np.ndarray, float],
    parameters: int,
    tell: Callable[[dict[str, Any], list[SampleRef]], None],
    progress: Callable[[int, int, int], None] = lambda generation, done, of: None,
    past: Sequence[dict[str, Any]] = (),
) -> Outcome:
    """Runs the search of `spec`.

    evaluate: as of `Dispatcher`; statistics: frozen feature statistics; parameters: length of theta; tell: gets
    each new generation's record, and the samples that nobody asks for again; progress: gets (generation, results so
    far, results wanted); past: records of generations told before, which are told to the search again and not
    evaluated. Raises ValueError when the search cannot go on, or when it does not arrive where it was.
    """

    def namm(theta: np.ndarray) -> PolicySpec:
        return PolicySpec("namm", theta=theta, statistics=statistics)

    start = np.zeros(parameters)
    start[-1] = spec.start.bias
    search = Search(replace(spec.search, seed=spec.search.seed + spec.seed), start)
    outcome = Outcome(best=namm(search.mean), best_generation=0, last=namm(search.mean))
    best, means = -np.inf, []
    for generation in range(spec.generations):
        started = time.monotonic()
        known = past[generation] if generation < len(past) else None
        candidates = search.ask()
        samples = training_samples(spec, generation)
        if known:
            record = dict(known)
        else:
            policies = [namm(theta) for theta in candidates] + [namm(search.mean), PolicySpec("full")]
            done = _Counter(generation, len(policies) * len(samples), progress)
            record = {"generation": generation + 1, **_compared(spec, evaluate(policies, samples, done))}
        search.tell(np.array([np.nan if f is None else f for f in record["fitness"]]))
        means.append(search.mean)
        # The average of recent means shakes less than any of them; both are looked at, the better one counts.
        looked_at = {"mean": namm(search.mean), "averaged": namm(np.mean(means[len(means) // 2 :], axis=0))}
        if known and record["theta"] != _digest(search.mean):
            raise ValueError(
                f"generation {generation + 1} told again gives another theta than it did: the libraries below the "
                "search (cma, numpy) have changed; go on with the ones of before, or choose another name"
            )
        if (generation + 1) % spec.validation.every == 0 or generation + 1 == spec.generations:
            if "validation_of" not in record:
                record |= _validated(spec, evaluate, looked_at)
            if record.get("validation_fitness", -np.inf) > best:
                best, outcome.best = record["validation_fitness"], looked_at[record["validation_of"]]
                outcome.best_generation = generation + 1
        outcome.last = namm(search.mean)
        if not known:
            record |= {
                "theta": _digest(search.mean),
                "sigma": search.sigma,
                "best_generation": outcome.best_generation,
                "seconds": time.monotonic() - started,
            }
            tell(record, samples)
        outcome.generations.append(record)
    return outcome


def _compared(spec: JobSpec, results: Results) -> dict[str, Any]:
    """A generation's record from the results of its candidates, its mean and the full cache, in this order."""
    samples = range(len(results[-1]))
    usable = [i for i in samples if all(row[i] is not None for row in results) and _finite(results[-1][i])]
    *rows, of_mean, of_full = [[row[i] for i in usable] for row in results]
    fitness = np.array([fitness_of(row, spec) for row in rows])
    if not np.isfinite(fitness).any():
        raise ValueError(
            f"no candidate has a finite fitness: of {len(samples)} samples {len(usable)} could be evaluated with the "
            "full cache; try model.dtype=float32 or other tasks, under another name"
        )
    finite = [row for row in [*rows, of_mean] if all(map(_finite, row))]
    return {
        "fitness": [float(f) if np.isfinite(f) else None for f in fitness],
        "fitness_mean": float(np.nanmean(fitness)),
        "fitness_best": float(np.nanmax(fitness)),
        "fitness_std": float(np.nanstd(fitness)),
        "mean_fitness": fitness_of(of_mean, spec),
        "mean_score": _mean(of_mean, "score"),
        "full_fitness": fitness_of(of_full, spec),
        "full_score": _mean(of_full, "score"),
        "kept": _mean(of_mean, "kept"),
        "kept_layers": np.mean([r.kept_layers for r in of_mean], axis=0).tolist(),
        "kept_candidates": float(np.mean([r.kept for row in rows for r in row])),
        "quarantined": len(samples) - len(usable),
        "not_finite": len(rows) + 1 - len(finite),
        "tasks": {task: _mean([r for r in of_mean if r.task == task], "score") for task in spec.train},
    }


def _validated(spec: JobSpec, evaluate: Evaluate, looked_at: dict[str, PolicySpec]) -> dict[str, Any]:
    """What the validation samples say of the policies looked at; the better one counts."""
    *seen, base = evaluate([*looked_at.values(), PolicySpec("full")], samples := validation_samples(spec))
    usable = [i for i in range(len(samples)) if all(row[i] is not None for row in (*seen, base)) and _finite(base[i])]
    values = [fitness_of([row[i] for i in usable], spec) for row in seen]
    if not np.isfinite(values).any():
        return {}
    first = int(np.nanargmax(values))
    chosen, base = ([row[i] for i in usable] for row in (seen[first], base))
    return {
        "validation_of": list(looked_at)[first],
        "validation_fitness": values[first],
        "validation_score": _mean(chosen, "score"),
        "validation_kept": _mean(chosen, "kept"),
        "validation_full": _mean(base, "score"),
        "validation_full_fitness": fitness_of(base, spec),
    }


def training_samples(spec: JobSpec, generation: int) -> list[SampleRef]:
    """A generation's samples, the same for all its candidates and never seen before in the run."""
    first = STATISTICS_SAMPLES + (spec.seed * 100_000 + generation) * spec.fitness.samples
    return [SampleRef(task, "train", first + i) for task in spec.train for i in range(spec.fitness.samples)]


def validation_samples(spec: JobSpec) -> list[SampleRef]:
    """The fixed samples by which the vector to deploy is chosen."""
    return [SampleRef(task, "validation", i) for task in spec.train for i in range(spec.validation.samples)]


def fitness_of(results: list[SampleResult], spec: JobSpec) -> float:
    """Mean over tasks of the mean over samples, less the price of what is kept; NaN when a task has no result, or a
    result is not finite."""
    tasks = [[r for r in results if r.task == task] for task in spec.train]
    if not all(tasks) or not all(map(_finite, results)):
        return float("nan")
    value = float(np.mean([np.mean([_measured(r, spec.fitness.measure) for r in rows]) for rows in tasks]))
    kept = float(np.mean([_mean(rows, "kept") for rows in tasks]))
    return value - spec.fitness.kept_weight * max(kept - spec.fitness.kept_free, 0.0)


def _measured(result: SampleResult, measure: str) -> float:
    return math.exp(result.logprob) if measure == "probability" else getattr(result, measure)


def _mean(results, name: str) -> float:
    return float(np.mean([getattr(r, name) for r in results])) if results else float("nan")


def _finite(result: SampleResult) -> bool:
    return math.isfinite(result.logprob) and math.isfinite(result.score)


def _digest(theta: np.ndarray) -> str:
    return hashlib.sha256(theta.tobytes()).hexdigest()[:16]


class _Counter:
    def __init__(self, generation: int, wanted: int, report: Callable[[int, int, int], None]) -> None:
        self.generation, self.wanted, self.done, self.report = generation, wanted, 0, report

    def __call__(self, more: int) -> None:
        self.done += more
        self.report(self.generation, self.done, self.wanted)
