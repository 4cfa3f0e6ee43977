"""The generation loop: ask, evaluate, tell, and now and then look at the mean on validation samples; stage by stage.

Everything asked here is a pure function of the job, so that a job which starts again tells the search what it was
told before, finds other answers in the journal, and arrives at the same bits. Knows nothing of Ray, MLflow or files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from orchestrator.evolution import budgets, start
from orchestrator.evolution.generation import compared
from orchestrator.evolution.look import LOOKED_AT, looked_at
from orchestrator.evolution.race import Contestants
from orchestrator.evolution.samples import Size, endless, training_samples, validation_samples
from orchestrator.evolution.stage import Consumed, StageRun, theta_digest
from orchestrator.protocols import Evaluate, EvaluateGroups, Recorder
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
    together: EvaluateGroups | None = None
    """Evaluates several groups at once, for memories with budgets; None: `evaluate`, one group after the other."""
    rules: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(N,) for each rule that the search may start from, by name: the theta that ranks as it does."""
    linear: np.ndarray | None = None
    """(N,) bool: the numbers that a stage of `part: linear` searches."""

    def namm(self, theta: np.ndarray) -> PolicySpec:
        """The NAMM with these parameters."""
        return PolicySpec("namm", theta=theta.astype(np.float32), statistics=self.statistics)

    def at(self, asked: budgets.Budgets) -> Evaluate:
        """Evaluates memories at each sample's budget, where there are budgets."""
        if not asked:
            return self.evaluate
        return budgets.AtBudgets(self.together or budgets.one_after_another(self.evaluate), asked)


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
    start: Record | None = None
    """The rule that the search started from, and how it did on validation samples; None: it started from none."""


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
        first = problem.namm(self.start)
        self.evolved = Evolved(best=first, best_generation=0, last=first)
        self.consumed = Consumed()
        self._before: Record | None = None
        """What was looked at before the stage that begins, until a generation's record says it."""

    def run(self) -> Evolved:
        """Stage after stage, each from the mean that the one before ended with."""
        ended: StageRun | None = None
        for number, plan in enumerate(self.spec.plan):
            validation = validation_samples(self.spec, plan.train, self.problem.size)
            best = self._look_before(number, validation)
            mean = self.start if ended is None else ended.next_mean
            sigma = ended.next_sigma if ended is not None and plan.sigma == "keep" else plan.sigma0
            told = len(self.evolved.generations)
            part = self.problem.linear if plan.part == "linear" else None
            if number == 0:
                self.recorder.looked(0, self.problem.namm(mean))
            stage = StageRun(self.spec, number, mean, sigma, LOOKED_AT * len(validation), told, part)
            stage.looked(best)
            self._stage(stage, validation)
            if stage.end is not None and stage.end.of == "job":
                break
            ended = stage
        return self.evolved

    def _look_before(self, number: int, validation: list[SampleRef]) -> float:
        """Looks at what the search of stage `number` must beat, where the job starts from a rule; returns its fitness.

        Before the first stage these are the rules, the best of which it starts from; before another one the best so
        far, the start, and the mean that the last one ended with.
        """
        spec, evolved, told = self.spec, self.evolved, len(self.evolved.generations)
        if not self.problem.rules:
            evolved.best, evolved.best_generation = evolved.last, told
            return -np.inf
        vectors = self._to_beat(number)
        look = self.past[told].get("before") if told < len(self.past) else None
        if look is None:
            evaluate = self.problem.at(budgets.validation_budgets(spec, validation))
            look = start.look_before(spec, spec.plan[number], evaluate, vectors, validation)
        self._before = look
        self.consumed.evaluations += (len(vectors) + 1) * len(validation)
        chosen = vectors[look["validation_of"]]
        evolved.best, evolved.best_generation = chosen.memory, chosen.generation
        if number == 0:
            self.start, evolved.last = self.problem.rules[look["validation_of"]], chosen.memory
            evolved.start = start.of_rules(look)
            self.recorder.begun(evolved.start)
        return look["validation_fitness"]

    def _to_beat(self, number: int) -> dict[str, start.Before]:
        """Vectors by name that are looked at before stage `number`."""
        evolved, namm, before = self.evolved, self.problem.namm, start.Before
        if number == 0:
            return start.distinct({rule: before(namm(theta), 0) for rule, theta in self.problem.rules.items()})
        return start.distinct(
            {
                "best": before(evolved.best, evolved.best_generation),
                "start": before(namm(self.start), 0),
                "mean": before(evolved.last, len(evolved.generations)),
            }
        )

    def _stage(self, stage: StageRun, validation: list[SampleRef]) -> None:
        """Generation after generation, until the stage's rules end it."""
        evolved = self.evolved
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
        if known is None and self._before is not None:
            record["before"] = self._before
        self._before = None
        if known is None:
            namm, told = self.problem.namm, partial(self.recorder.progress, number)
            contestants = Contestants([namm(theta) for theta in candidates], namm(search.mean), search.elite)
            evaluate = self.problem.at(budgets.training_budgets(self.spec, number, stage.plan, samples))
            record |= compared(self.spec, stage.plan, evaluate, contestants, samples, told)
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
            evaluate = self.problem.at(budgets.validation_budgets(self.spec, validation))
            record |= looked_at(self.spec, stage.plan, evaluate, looks, validation)
        if stage.looked(record.get("validation_fitness", -np.inf)):
            self.evolved.best, self.evolved.best_generation = looks[record["validation_of"]], record["generation"]
        self.consumed.evaluations += stage.look
        stage.judge(self.consumed, looked=True)
        self.recorder.looked(record["generation"], looks["mean"])
