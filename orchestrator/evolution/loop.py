"""The generation loop: ask, evaluate, tell, and now and then look at the mean on validation samples; stage by stage.

Everything asked here is a pure function of the job, so that a job which starts again tells the search what it was
told before, finds other answers in the journal, and arrives at the same bits. Knows nothing of Ray, MLflow or files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from orchestrator.evolution.fitness import fitness_of
from orchestrator.evolution.generation import LOOKED_AT, compared, looked_at
from orchestrator.evolution.samples import STATISTICS_SAMPLES, Size, endless, training_samples, validation_samples
from orchestrator.evolution.stage import Budget, Stage, theta_digest
from orchestrator.protocols import Evaluate
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef

__all__ = [
    "STATISTICS_SAMPLES",
    "Outcome",
    "evolve",
    "fitness_of",
    "training_samples",
    "validation_samples",
]


@dataclass
class Outcome:
    """What an evolution ends with."""

    best: PolicySpec
    """The mean, or average of recent means, with the best fitness on the last stage's validation samples."""
    best_generation: int
    """Generations told when it was looked at."""
    last: PolicySpec
    """The mean at the end; after restarts, of the search that found the best one."""
    generations: list[dict[str, Any]] = field(default_factory=list)
    """One record a generation, plain JSON values."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """One entry a stage that was reached, plain JSON values."""


def evolve(
    spec: JobSpec,
    evaluate: Evaluate,
    statistics: tuple[np.ndarray, np.ndarray, float],
    parameters: int,
    tell: Callable[[dict[str, Any], list[SampleRef]], None],
    progress: Callable[[int, int, int], None] = lambda generation, done, of: None,
    past: Sequence[dict[str, Any]] = (),
    stage_over: Callable[[dict[str, Any], PolicySpec, PolicySpec], None] = lambda entry, best, mean: None,
    size: Size = endless,
) -> Outcome:
    """Runs the search of `spec`.

    evaluate: as of `Dispatcher`; statistics: frozen feature statistics; parameters: length of theta; tell: gets
    each new generation's record, and the samples that nobody asks for again; progress: gets (generation, results so
    far, results wanted); past: records of generations told before, which are told to the search again and not
    evaluated; stage_over: gets a stage's entry, its best policy on validation and the mean from which the next one
    starts; size: of the tasks' splits. Raises ValueError when the search cannot go on, or when it does not arrive
    where it was.
    """

    def namm(theta: np.ndarray) -> PolicySpec:
        return PolicySpec("namm", theta=theta, statistics=statistics)

    mean, sigma = np.zeros(parameters), spec.search.sigma0
    mean[-1] = spec.start.bias
    budget = Budget()
    outcome = Outcome(best=namm(mean.astype(np.float32)), best_generation=0, last=namm(mean.astype(np.float32)))
    for number, stage in enumerate(spec.plan):
        validation = validation_samples(spec, stage.train, size)
        sigma = sigma if stage.sigma == "keep" else spec.search.sigma0
        at = Stage(spec, number, mean, sigma, LOOKED_AT * len(validation), len(outcome.generations))
        outcome.best, outcome.best_generation = outcome.last, len(outcome.generations)
        while at.end is None:
            started, generation = time.monotonic(), len(outcome.generations)
            known = past[generation] if generation < len(past) else None
            samples = training_samples(spec, generation, stage, size)
            record = dict(known or {"generation": generation + 1, **at.labels()})
            candidates, search = at.search.ask(), at.search
            if not known:
                told = partial(progress, generation)
                asked = [namm(theta) for theta in candidates], namm(search.mean)
                record |= compared(spec, stage, evaluate, *asked, samples, search.elite, told)
            at.tell(np.array([np.nan if f is None else f for f in record["fitness"]]))
            if known and record["theta"] != theta_digest(search.mean):
                raise ValueError(
                    f"generation {generation + 1} told again gives another theta than it did: the libraries below the "
                    "search (cma, numpy) have changed; go on with the ones of before, or choose another name"
                )
            budget.evaluations += record["asked"]
            budget.seconds += known["seconds"] if known else time.monotonic() - started
            budget.timed = generation + 1 >= len(past)  # behind an earlier one, another was told: time did not end it
            at.judge(budget, looked=False)
            if at.look_due:
                looks = {"mean": namm(search.mean), "averaged": namm(at.averaged())}
                if "validation_of" not in record:
                    record |= looked_at(spec, stage, evaluate, looks, validation)
                if at.looked(record.get("validation_fitness", -np.inf)):
                    outcome.best, outcome.best_generation = looks[record["validation_of"]], generation + 1
                budget.evaluations += at.look
                at.judge(budget, looked=True)
            record |= {"ended": at.end and at.end.of, "reason": at.end and at.end.reason}
            record["best_generation"] = outcome.best_generation
            if not known:
                record |= {"theta": theta_digest(search.mean), "sigma": search.sigma}
                record["seconds"] = time.monotonic() - started
                tell(record, samples)
            outcome.generations.append(record)
            at.close(generation + 1)
        mean, sigma, outcome.last = at.next_mean, at.next_sigma, namm(at.next_mean)
        outcome.stages.append(at.entry | {"best_generation": outcome.best_generation})
        stage_over(outcome.stages[-1], outcome.best, outcome.last)
        if at.end.of == "job":
            break
    return outcome
