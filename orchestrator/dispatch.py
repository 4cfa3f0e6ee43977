"""Hands units of work to whatever workers there are, and counts every result once.

Workers pull: whoever is idle gets the next units. A worker that dies or does not answer in time is replaced and
its units go to another; a sample whose evaluation itself fails on three workers is quarantined, for all policies.
Knows nothing of search, generations or fitness.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import ray

from orchestrator.journal import Journal, policy_key
from orchestrator.spec import WorkerSpec
from workers import actor
from workers.config import EvaluatorConfig
from workers.unit import PolicySpec, SampleRef, SampleResult, Unit

logger = logging.getLogger(__name__)

SECONDS_A_CALL = 2.0
"""Work that is sent together, at most: long enough to hide the trip, short enough to share the end fairly."""
TRIES = 3
"""Workers on which an evaluation may fail before its samples are quarantined."""


class WorkFailed(RuntimeError):
    """No worker can do the work; one line says why."""


@dataclass
class Cost:
    """What evaluations have cost so far."""

    evaluations: int = 0
    """Results computed (not found in the journal)."""
    tokens: int = 0
    """Their prompt tokens."""
    worker_seconds: float = 0.0
    """Time that workers were busy."""
    hits: int = 0
    """Prompts found in Redis."""
    misses: int = 0
    """Prompts made anew."""


@dataclass
class _Job:
    unit: Unit
    keys: tuple[str, ...]
    failures: int = 0


@dataclass
class _Call:
    worker: ray.actor.ActorHandle
    jobs: list[_Job]
    deadline: float


@dataclass
class Dispatcher:
    """A set of workers behind one journal."""

    config: EvaluatorConfig
    spec: WorkerSpec
    journal: Journal
    cost: Cost = field(default_factory=Cost)
    quarantined: set[SampleRef] = field(default_factory=set)
    """Samples that failed on every worker that tried them."""

    def __post_init__(self) -> None:
        self.count = self.spec.count or self._room()
        self._workers = [actor.start(self.config, self.spec.gpus) for _ in range(self.count)]
        self._losses = 0
        self._seconds_a_unit: float | None = None
        try:
            ray.get([worker.ready.remote() for worker in self._workers], timeout=self.spec.timeout)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except ray.exceptions.GetTimeoutError:
            raise WorkFailed(
                f"{self.count} workers were not ready after {self.spec.timeout:.0f} s: ask for fewer (workers.count)"
            ) from None
        except ray.exceptions.RayActorError as error:
            raise (_cause(error) if error.__cause__ else WorkFailed(f"a worker died while starting: {error}")) from None

    def evaluate(
        self,
        policies: list[PolicySpec],
        samples: list[SampleRef],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[list[SampleResult | None]]:
        """Results[policy][sample]; None where the sample is quarantined.

        progress: called with the number of results that arrived. Raises WorkFailed when workers cannot be kept
        alive.
        """
        keys = [policy_key(policy) for policy in policies]
        waiting: deque[_Job] = deque(self._missing(policies, keys, samples))
        known = len(policies) * len(samples) - sum(len(j.unit.policies) * len(j.unit.samples) for j in waiting)
        progress(known)
        idle, calls = list(self._workers), {}
        while waiting or calls:
            while waiting and idle:
                worker = idle.pop()
                jobs = [waiting.popleft() for _ in range(self._share(len(waiting)))]
                call = worker.evaluate.remote([job.unit for job in jobs])
                calls[call] = _Call(worker, jobs, time.monotonic() + self.spec.timeout)
            first = min(call.deadline for call in calls.values()) - time.monotonic()
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=max(first, 0.0))
            if not ready:
                self._give_up_late(calls, waiting, idle)
                continue
            call = calls.pop(ready[0])
            try:
                results, cost = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                idle.append(call.worker)
                self._retry(call.jobs, waiting, error)
            except ray.exceptions.RayActorError:
                self._replace(call, waiting, idle, "died")
            else:
                idle.append(call.worker)
                self._take(call.jobs, results, cost, progress)
        return [[None if ref in self.quarantined else self.journal.get(key, ref) for ref in samples] for key in keys]

    def on_one(self, method: str, *arguments):
        """Calls a method of one worker's evaluator, with the usual time limit."""
        return ray.get(getattr(self._workers[0], method).remote(*arguments), timeout=self.spec.timeout)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []

    def _missing(self, policies: list[PolicySpec], keys: list[str], samples: list[SampleRef]) -> list[_Job]:
        """Units of fixed shape that hold some result which the journal lacks, samples varying fastest."""
        jobs = []
        samples = [ref for ref in samples if ref not in self.quarantined]
        wide = self.spec.candidates_per_call if all(p.name == "namm" for p in policies) else 1
        for i in range(0, len(policies), wide):
            for j in range(0, len(samples), self.spec.samples_per_call):
                some, refs = slice(i, i + wide), tuple(samples[j : j + self.spec.samples_per_call])
                if any(self.journal.get(key, ref) is None for key in keys[some] for ref in refs):
                    jobs.append(_Job(Unit(tuple(policies[some]), refs), tuple(keys[some])))
        return jobs

    def _share(self, waiting: int) -> int:
        """How many units travel together: some seconds of work, and no more than a fair part of what is left."""
        fair = max(waiting // (2 * self.count), 1)
        if self._seconds_a_unit is None:
            return 1
        return min(fair, max(int(SECONDS_A_CALL / self._seconds_a_unit), 1))

    def _take(self, jobs: list[_Job], results, cost: dict[str, float], progress: Callable[[int], None]) -> None:
        found = [
            (key, result)
            for job, unit in zip(jobs, results, strict=True)
            for key, row in zip(job.keys, unit, strict=True)
            for result in row
        ]
        fresh = self.journal.put(found)
        self.cost.evaluations += len(fresh)
        self.cost.tokens += sum(result.tokens for result in fresh)
        self.cost.worker_seconds += cost["seconds"]
        self.cost.hits += int(cost["hits"])
        self.cost.misses += int(cost["misses"])
        self._seconds_a_unit = max(cost["seconds"] / len(jobs), 1e-4)
        progress(len(found))

    def _retry(self, jobs: list[_Job], waiting: deque[_Job], error: Exception) -> None:
        """An evaluation raised: its units go again one by one, so that the one at fault is found."""
        if len(jobs) > 1:
            self._seconds_a_unit = None  # until one has succeeded, they travel alone
            waiting.extendleft(jobs)
            return
        job = jobs[0]
        job.failures += 1
        if job.failures < TRIES:
            waiting.append(job)
            return
        reason = str(_cause(error)).splitlines()[0] if str(_cause(error)) else type(_cause(error)).__name__
        names = ", ".join(f"{ref.task}/{ref.split}/{ref.index}" for ref in job.unit.samples)
        logger.warning("quarantined after %d failures, for all candidates: %s (%s)", TRIES, names, reason)
        self.quarantined.update(job.unit.samples)
        if len(self.quarantined) > 100:
            raise WorkFailed(f"more than 100 samples failed; the last one: {names} ({reason})")

    def _give_up_late(self, calls: dict, waiting: deque[_Job], idle: list) -> None:
        now = time.monotonic()
        for reference in [r for r, call in calls.items() if call.deadline <= now]:
            call = calls.pop(reference)
            self._replace(call, waiting, idle, f"did not answer within {self.spec.timeout:.0f} s")

    def _replace(self, call: _Call, waiting: deque[_Job], idle: list, what: str) -> None:
        """A worker is gone, or as good as: a new one takes its place and another its units."""
        self._losses += 1
        logger.warning("a worker %s; its %d unit(s) go to another", what, len(call.jobs))
        if self._losses > 20 * max(self.count, 1):
            raise WorkFailed(f"workers were lost {self._losses} times; look at the Ray logs, then --resume")
        ray.kill(call.worker)
        waiting.extendleft(reversed(call.jobs))
        fresh = actor.start(self.config, self.spec.gpus)
        self._workers[self._workers.index(call.worker)] = fresh
        idle.append(fresh)

    def _room(self) -> int:
        resources = ray.cluster_resources()
        if self.spec.gpus:
            return max(int(resources.get("GPU", 0) / self.spec.gpus), 1)
        return max(int(resources.get("CPU", 1) / self.spec.threads), 1)


def _cause(error: BaseException) -> BaseException:
    """What a worker raised, without Ray's wrapping."""
    while isinstance(error, ray.exceptions.RayError) and (error.__cause__ or getattr(error, "cause", None)):
        error = error.__cause__ or error.cause
    return error
