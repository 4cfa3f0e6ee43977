"""The generation loop: ask, evaluate, tell, and now and then look at the mean on validation samples.

Everything asked here is a pure function of the job, so that a job which starts again finds its answers in the
journal and arrives at the same bits. Knows nothing of Ray, MLflow or files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
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
    told: Callable[[dict[str, Any]], None],
    progress: Callable[[int, int, int], None] = lambda generation, done, of: None,
) -> Outcome:
    """Runs the search of `spec`.

    evaluate: as of `Dispatcher`; statistics: frozen feature statistics; parameters: length of theta; told: gets
    each generation's record; progress: gets (generation, results so far, results wanted).
    """

    def namm(theta: np.ndarray) -> PolicySpec:
        return PolicySpec("namm", theta=theta, statistics=statistics)

    start = np.zeros(parameters)
    start[-1] = spec.start.bias
    search = Search(replace(spec.search, seed=spec.search.seed + spec.seed), start)
    full = PolicySpec("full")
    validation = validation_samples(spec)
    outcome = Outcome(best=namm(search.mean), best_generation=0, last=namm(search.mean))
    best, means = -np.inf, []
    for generation in range(spec.generations):
        started = time.monotonic()
        samples = training_samples(spec, generation)
        candidates = search.ask()
        policies = [namm(theta) for theta in candidates] + [namm(search.mean), full]
        done = _Counter(generation, len(policies) * len(samples), progress)
        results = evaluate(policies, samples, done)
        usable = [i for i in range(len(samples)) if all(_sound(row[i]) for row in results)]
        *rows, of_mean, of_full = [[row[i] for i in usable] for row in results]
        fitness = np.array([fitness_of(row, spec) for row in rows])
        search.tell(fitness)
        means.append(search.mean)
        record = {
            "generation": generation + 1,
            "fitness_mean": float(fitness.mean()),
            "fitness_best": float(fitness.max()),
            "fitness_std": float(fitness.std()),
            "mean_fitness": fitness_of(of_mean, spec),
            "mean_score": _mean(of_mean, "score"),
            "full_fitness": fitness_of(of_full, spec),
            "full_score": _mean(of_full, "score"),
            "kept": _mean(of_mean, "kept"),
            "kept_layers": np.mean([r.kept_layers for r in of_mean], axis=0).tolist(),
            "kept_candidates": float(np.mean([r.kept for row in rows for r in row])),
            "sigma": search.sigma,
            "quarantined": len(samples) - len(usable),
            "tasks": {task: _mean([r for r in of_mean if r.task == task], "score") for task in spec.train},
        }
        if (generation + 1) % spec.validation.every == 0 or generation + 1 == spec.generations:
            # The average of recent means shakes less than any of them; both are looked at, the better one counts.
            looked_at = {
                "mean": namm(search.mean),
                "averaged": namm(np.mean(means[len(means) // 2 :], axis=0)),
            }
            *seen, base = evaluate([*looked_at.values(), full], validation)
            usable = [i for i in range(len(validation)) if all(_sound(row[i]) for row in (*seen, base))]
            values = [fitness_of([row[i] for i in usable], spec) for row in seen]
            first = int(np.argmax(values))
            chosen = [seen[first][i] for i in usable]
            record |= {
                "validation_of": list(looked_at)[first],
                "validation_fitness": values[first],
                "validation_score": _mean(chosen, "score"),
                "validation_kept": _mean(chosen, "kept"),
                "validation_full": _mean([base[i] for i in usable], "score"),
                "validation_full_fitness": fitness_of([base[i] for i in usable], spec),
            }
            if values[first] > best:
                best, outcome.best = values[first], list(looked_at.values())[first]
                outcome.best_generation = generation + 1
        record |= {"seconds": time.monotonic() - started, "best_generation": outcome.best_generation}
        outcome.last = namm(search.mean)
        outcome.generations.append(record)
        told(record)
    return outcome


def training_samples(spec: JobSpec, generation: int) -> list[SampleRef]:
    """A generation's samples, the same for all its candidates and never seen before in the run."""
    first = STATISTICS_SAMPLES + (spec.seed * 100_000 + generation) * spec.fitness.samples
    return [SampleRef(task, "train", first + i) for task in spec.train for i in range(spec.fitness.samples)]


def validation_samples(spec: JobSpec) -> list[SampleRef]:
    """The fixed samples by which the vector to deploy is chosen."""
    return [SampleRef(task, "validation", i) for task in spec.train for i in range(spec.validation.samples)]


def fitness_of(results: list[SampleResult], spec: JobSpec) -> float:
    """Mean over tasks of the mean over samples, less the price of what is kept; NaN when nothing is there."""
    tasks = [[r for r in results if r.task == task] for task in spec.train]
    if not all(tasks):
        return float("nan")
    value = float(np.mean([np.mean([_measured(r, spec.fitness.measure) for r in rows]) for rows in tasks]))
    kept = float(np.mean([_mean(rows, "kept") for rows in tasks]))
    return value - spec.fitness.kept_weight * max(kept - spec.fitness.kept_free, 0.0)


def _measured(result: SampleResult, measure: str) -> float:
    return math.exp(result.logprob) if measure == "probability" else getattr(result, measure)


def _mean(results, name: str) -> float:
    return float(np.mean([getattr(r, name) for r in results])) if results else float("nan")


def _sound(result: SampleResult | None) -> bool:
    return result is not None and bool(np.isfinite(result.logprob))


class _Counter:
    def __init__(self, generation: int, wanted: int, report: Callable[[int, int, int], None]) -> None:
        self.generation, self.wanted, self.done, self.report = generation, wanted, 0, report

    def __call__(self, more: int) -> None:
        self.done += more
        self.report(self.generation, self.done, self.wanted)
