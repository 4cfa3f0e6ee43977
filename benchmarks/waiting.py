"""Evaluators that only wait, for measuring what hands them work: one that a Ray actor can host, and a fleet of
hundreds that needs no processes. What they answer depends on what they are asked, as a real one's does.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import time
from collections.abc import Callable

from orchestrator.fleet_events import Answered, Event, Joined, Left
from workers.array_cache import ArrayCache
from workers.config import EvaluatorConfig
from workers.unit import CallResult, Failure, SampleResult, Unit, WorkerInfo


def result_of(policy, ref) -> SampleResult:
    """A made-up result, a pure function of policy and sample."""
    digest = hashlib.sha256(repr((policy.name, policy.budget, ref)).encode())
    digest.update(b"" if policy.theta is None else policy.theta.tobytes())
    value = int.from_bytes(digest.digest()[:6], "big") / 2**48
    return SampleResult(*ref, value, value - 1.0, value, [value], 1000, "waited")


class WaitingEvaluator:
    """Takes `tasks["seconds"]` for each unit."""

    def __init__(self, config: EvaluatorConfig) -> None:
        self.arrays = ArrayCache(None)
        self.seconds = float(config.tasks["seconds"])

    def evaluate(self, unit: Unit) -> list[list[SampleResult]]:
        """See `workers.evaluator.Evaluator`."""
        time.sleep(self.seconds)
        return [[result_of(policy, ref) for ref in unit.samples] for policy in unit.policies]


class WaitingFleet:
    """Workers that are nothing but a time at which they answer (see `orchestrator.protocols.Fleet`).

    paces: seconds a unit, for each worker. outcome: gets (worker, unit), returns a `Failure` where the unit fails
    there, "hang" where it is never done, "die" where the worker dies of it, else None. memory: bytes of each worker.
    """

    def __init__(
        self,
        paces: list[float],
        outcome: Callable[[int, Unit], Failure | str | None] = lambda worker, unit: None,
        memory: list[int] | None = None,
    ) -> None:
        self.paces, self.outcome = dict(enumerate(paces)), outcome
        self.memory = dict(enumerate(memory or [1] * len(paces)))
        self.wanted = len(paces)
        self.sent: list[tuple[int, list[Unit]]] = []
        """What was sent, in order: worker and units."""
        self.waited = 0.0
        """Seconds spent waiting for the workers."""
        self._numbers = itertools.count()
        self._fresh = itertools.count(len(paces))
        self._ends: list[tuple[float, int]] = []
        self._calls: dict[int, tuple[int, list[Unit], float]] = {}
        self._events: list[Event] = [Joined(n, WorkerInfo(0, "", self.memory[n])) for n in self.paces]

    def send(self, worker: int, method: str, *arguments) -> int:
        """See `Fleet`; the only method is `evaluate`."""
        (units,) = arguments
        call, seconds = next(self._numbers), self.paces[worker] * len(units)
        self.sent.append((worker, units))
        self._calls[call] = (worker, units, seconds)
        heapq.heappush(self._ends, (time.monotonic() + seconds, call))
        return call

    def wait(self, seconds: float) -> list[Event]:
        """See `Fleet`."""
        now = time.monotonic()
        first = self._ends[0][0] if self._ends else now + seconds
        if not self._events and (pause := min(first, now + seconds) - now) > 0:
            time.sleep(pause)
        self.waited += time.monotonic() - now
        while self._ends and self._ends[0][0] <= time.monotonic():
            self._answer(heapq.heappop(self._ends)[1])
        events, self._events = self._events, []
        return events

    def end(self, worker: int, reason: str) -> None:
        """See `Fleet`: another worker of the same kind takes its place at once."""
        self._calls = {call: entry for call, entry in self._calls.items() if entry[0] != worker}
        fresh = next(self._fresh)
        self.paces[fresh], self.memory[fresh] = self.paces.pop(worker), self.memory.pop(worker)
        self._events += [Left(worker, reason), Joined(fresh, WorkerInfo(0, "", self.memory[fresh]))]

    @property
    def busy(self) -> set[int]:
        """Workers with a call under way."""
        return {worker for worker, _, _ in self._calls.values()}

    def join(self, pace: float, memory: int = 1) -> None:
        """One more worker."""
        fresh = next(self._fresh)
        self.paces[fresh], self.memory[fresh] = pace, memory
        self.wanted += 1
        self._events.append(Joined(fresh, WorkerInfo(0, "", memory)))

    def close(self) -> None:
        """See `Fleet`."""
        self._calls, self._ends = {}, []

    def _answer(self, call: int) -> None:
        if call not in self._calls:
            return
        worker, units, seconds = self._calls[call]
        outcomes = [self.outcome(worker, unit) for unit in units]
        if "hang" in outcomes:
            return
        if "die" in outcomes:
            self.end(worker, "died")
            return
        del self._calls[call]
        done = tuple(
            outcome or [[result_of(policy, ref) for ref in unit.samples] for policy in unit.policies]
            for unit, outcome in zip(units, outcomes, strict=True)
        )
        self._events.append(Answered(call, CallResult(done, seconds)))
