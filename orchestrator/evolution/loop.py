"""The generation loop: ask, evaluate, tell, and now and then look at the mean on validation samples; stage by stage.

Everything asked here is a pure function of the job, so that a job which starts again tells the search what it was
told before, finds other answers in the journal, and arrives at the same bits. Knows nothing of Ray, MLflow or files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from orchestrator.evolution.generation import compared
from orchestrator.evolution.look import LOOKED_AT, looked_at
from orchestrator.evolution.race import Contestants
from orchestrator.evolution.samples import Size, endless, training_samples, validation_samples
from orchestrator.evolution.stage import Consumed, StageRun, theta_digest
from orchestrator.protocols import Evaluate, Recorder
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef

Record = dict[str, Any]
"""What is kept of a generation, plain JSON values."""


@dataclass(frozen=True)
class Problem:
    """What is searched for: the `parameters` numbers of a NAMM, and how it is found out what they are worth."""

    evaluate: Evaluate
    statistics: tuple[np.ndarray, np.ndarray, float]
    """Frozen feature statistics: mean, variance and count."""
    parameters: int
    """Length of theta."""
    size: Size = endless
    """Samples in the tasks' splits."""

    def namm(self, theta: np.ndarray) -> PolicySpec:
        """The NAMM with these parameters."""
        return PolicySpec("namm", theta=theta, statistics=self.statistics)


@dataclass
class Evolved:
    """What an evolution has come to, so far or in the end."""

    best: PolicySpec
    """The mean, or average of recent means, with the best fitness on the last stage's validation samples."""
    best_generation: int
    """Generations told when it was looked at."""
    last: PolicySpec
    """The mean at the end; after restarts, of the search that found the best one."""
    generations: list[Record] = field(default_factory=list)
    """One record a generation."""
    stages: list[Record] = field(default_factory=list)
    """One entry a stage that was reached, plain JSON values."""


class Unrecorded(Recorder):
    """Keeps nothing."""


def evolve(spec: JobSpec, problem: Problem, recorder: Recorder | None = None, past: Sequence[Record] = ()) -> Evolved:
    """Runs the search of `spec` to its end.

    past: records of generations told before, which are told to the search again and not evaluated. Raises ValueError
    when the search cannot go on, or when, told again, it does not arrive where it was.
    """
    return _Evolution(spec, problem, recorder or Unrecorded(), past).run()


class _Evolution:
    """One run of `evolve`: `run` goes through stages, `_stage` through generations, `_generation` is one of them."""

    def __init__(self, spec: JobSpec, problem: Problem, recorder: Recorder, past: Sequence[Record]) -> None:
        self.spec, self.problem, self.recorder, self.past = spec, problem, recorder, past
        self.start = np.zeros(problem.parameters)
        self.start[-1] = spec.start.bias
        first = problem.namm(self.start.astype(np.float32))
        self.evolved = Evolved(best=first, best_generation=0, last=first)
        self.consumed = Consumed()

    def run(self) -> Evolved:
        """Stage after stage, each from the mean that the one before ended with."""
        mean, sigma = self.start, self.spec.search.sigma0
        for number, plan in enumerate(self.spec.plan):
            validation = validation_samples(self.spec, plan.train, self.problem.size)
            sigma = sigma if plan.sigma == "keep" else self.spec.search.sigma0
            told = len(self.evolved.generations)
            stage = StageRun(self.spec, number, mean, sigma, LOOKED_AT * len(validation), told)
            self._stage(stage, validation)
            mean, sigma = stage.next_mean, stage.next_sigma
            if stage.end is not None and stage.end.of == "job":
                break
        return self.evolved

    def _stage(self, stage: StageRun, validation: list[SampleRef]) -> None:
        """Generation after generation, until the stage's rules end it."""
        evolved = self.evolved
        evolved.best, evolved.best_generation = evolved.last, len(evolved.generations)
        while stage.end is None:
            self._generation(stage, validation)
        evolved.last = self.problem.namm(stage.next_mean)
        evolved.stages.append(stage.entry | {"best_generation": evolved.best_generation})
        self.recorder.stage_over(evolved.stages[-1], evolved.best, evolved.last)

    def _generation(self, stage: StageRun, validation: list[SampleRef]) -> None:
        """Asks, evaluates and tells; or, where the generation was told before, asks and tells again."""
        started, number = time.monotonic(), len(self.evolved.generations)
        known = self.past[number] if number < len(self.past) else None
        samples = training_samples(self.spec, number, stage.plan, self.problem.size)
        search = stage.search
        candidates = search.ask()
        record = dict(known or {"generation": number + 1, **stage.labels()})
        if known is None:
            namm, told = self.problem.namm, partial(self.recorder.progress, number)
            contestants = Contestants([namm(theta) for theta in candidates], namm(search.mean), search.elite)
            record |= compared(self.spec, stage.plan, self.problem.evaluate, contestants, samples, told)
        stage.tell(np.array([np.nan if f is None else f for f in record["fitness"]]))
        if known is not None and record["theta"] != theta_digest(search.mean):
            raise ValueError(
                f"generation {number + 1} told again gives another theta than it did: the libraries below the "
                "search (cma, numpy) have changed; go on with the ones of before, or choose another name"
            )
        self.consumed.evaluations += record["asked"]
        self.consumed.seconds += time.monotonic() - started if known is None else known["seconds"]
        # Behind an earlier generation another one was told: time did not end the job there.
        self.consumed.timed = number + 1 >= len(self.past)
        stage.judge(self.consumed, looked=False)
        if stage.look_due:
            self._look(stage, record, validation)
        record |= {"ended": stage.end and stage.end.of, "reason": stage.end and stage.end.reason}
        record["best_generation"] = self.evolved.best_generation
        if known is None:
            record |= {"theta": theta_digest(search.mean), "sigma": search.sigma}
            record["seconds"] = time.monotonic() - started
            self.recorder.told(record, samples)
        self.evolved.generations.append(record)
        stage.close(number + 1)

    def _look(self, stage: StageRun, record: Record, validation: list[SampleRef]) -> None:
        """Looks at the mean, and at the average of recent means, on the validation samples; the best one is kept."""
        namm = self.problem.namm
        looks = {"mean": namm(stage.search.mean), "averaged": namm(stage.averaged())}
        if "validation_of" not in record:
            record |= looked_at(self.spec, stage.plan, self.problem.evaluate, looks, validation)
        if stage.looked(record.get("validation_fitness", -np.inf)):
            self.evolved.best, self.evolved.best_generation = looks[record["validation_of"]], record["generation"]
        self.consumed.evaluations += stage.look
        stage.judge(self.consumed, looked=True)
