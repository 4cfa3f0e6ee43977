"""Keeps the workers: who is there, what each one is doing and until when, and how fast it is.

Knows calls and their limits. Knows nothing of what is asked in them, nor how a worker is reached (`Fleet`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.dispatch.work import WorkFailed, WorkItem
from orchestrator.fleet_events import Answered, Event, Joined, Left, NotStarted, Raised
from orchestrator.protocols import Fleet

logger = logging.getLogger(__name__)

SAY_SO_AFTER = 30.0
"""Seconds without a worker after which that is said."""
SAY_SO_EVERY = 60.0
"""Seconds after which it is said again."""


@dataclass(eq=False)
class Worker:
    """A worker that is ready, or was."""

    number: int
    memory: int
    """Bytes, 0 where unknown."""
    pace: float | None = None
    """Seconds a unit; None before its first result."""
    call: Call | None = None
    """What it is doing; None while it is idle."""
    without_redis: bool = False
    """Whether it goes on without Redis, as its last result said."""


@dataclass(eq=False)
class Call:
    """What a worker was sent in one go."""

    worker: Worker
    items: Sequence[WorkItem]
    """The units in it; none for a question."""
    started: float
    deadline: float
    """On the monotonic clock, in seconds."""
    end: Answered | Raised | Left | None = None
    """How it ended; None while it is under way."""
    late: bool = False
    """Whether its worker was ended for not answering in time."""


@dataclass
class Pool:
    """The workers of a fleet, and the calls under way.

    patience: seconds without any worker after which `step` raises WorkFailed.
    """

    fleet: Fleet
    patience: float
    workers: dict[int, Worker] = field(default_factory=dict)
    """Those that are ready, by number."""
    calls: dict[int, Call] = field(default_factory=dict)
    """Those under way, by number."""
    lost: int = 0
    """Workers that died, hung or left."""
    _pace: float | None = None
    _any_answer: bool = False
    _stuck_since: float | None = None
    _said_so: float = float("-inf")
    _last_failed_start: str = ""

    def idle(self) -> list[Worker]:
        """Workers without a call, the fastest first."""
        idle = [worker for worker in self.workers.values() if worker.call is None]
        return sorted(idle, key=lambda worker: self.pace(worker) or 0.0)

    def pace(self, worker: Worker) -> float | None:
        """Seconds that a worker takes for a unit: its own pace, else that of all; None before any result."""
        return worker.pace or self._pace

    @property
    def mean_pace(self) -> float | None:
        """Seconds a unit, a running mean over all workers; None before any result."""
        return self._pace

    def learn(self, worker: Worker, seconds: float, units: int) -> None:
        """A worker took `seconds` for so many units."""
        pace = max(seconds / units, 1e-4)
        worker.pace = pace if worker.pace is None else 0.5 * (worker.pace + pace)
        self._pace = pace if self._pace is None else 0.8 * self._pace + 0.2 * pace

    def send(self, worker: Worker, limit: float, method: str, *arguments: Any, items: Sequence[WorkItem] = ()) -> Call:
        """Calls a method of an idle worker, which has `limit` seconds for it."""
        number, now = self.fleet.send(worker.number, method, *arguments), time.monotonic()
        worker.call = self.calls[number] = Call(worker, items, now, now + limit)
        return worker.call

    def work_begins(self) -> None:
        """From now on, having no worker means waiting for one; before, there may have been nothing to do."""
        self._stuck_since = None

    def step(self) -> list[Call]:
        """Waits until something happens, at most a second; returns the calls that ended, in order.

        Workers that exceed a call's limit are ended. Raises WorkFailed when there has been no worker for too long, and
        the error (ValueError) of a worker that cannot load what the configuration names, before any has worked.
        """
        now = time.monotonic()
        first = min((call.deadline for call in self.calls.values()), default=now + 1.0)
        pause = 0.25 if self.calls and self.idle() else 1.0  # an idle worker may take a copy soon
        ended = []
        for event in self.fleet.wait(min(max(first - now, 0.0), pause)):
            if (call := self._take(event)) is not None:
                ended.append(call)
        now = time.monotonic()
        for call in [call for call in self.calls.values() if call.deadline <= now]:
            call.late, limit = True, call.deadline - call.started
            call.deadline = float("inf")  # `Left` follows
            self.fleet.end(call.worker.number, f"did not answer within {limit:.0f} s")
        self._watch_for_workers(now)
        return ended

    def _take(self, event: Event) -> Call | None:
        """Notes an event; returns the call that ended with it, if one did."""
        if isinstance(event, Joined):
            self.workers[event.worker] = Worker(event.worker, event.info.memory)
        elif isinstance(event, Answered | Raised):
            self._any_answer = True
            call = self.calls.pop(event.call)
            call.end, call.worker.call = event, None
            return call
        elif isinstance(event, Left):
            return self._left(event)
        elif isinstance(event, NotStarted):
            if isinstance(event.error, ValueError) and not self._any_answer and not self.workers:
                raise event.error
            self._last_failed_start = f"; a worker could not start: {event.error}"
            logger.warning("a worker could not start: %s; it is tried again", event.error)
        return None

    def _left(self, event: Left) -> Call | None:
        self.lost += 1
        worker = self.workers.pop(event.worker)
        call = worker.call
        if call is not None:
            self.calls = {number: other for number, other in self.calls.items() if other is not call}
            call.end, worker.call = event, None
        units = f"; its {len(call.items)} unit(s) go to others" if call and call.items else ""
        logger.warning("a worker %s%s", event.reason, units)
        return call

    def _watch_for_workers(self, now: float) -> None:
        """Says when nobody is at work, and gives up in the end."""
        if self.calls:
            self._stuck_since = None
            return
        if self._stuck_since is None:
            self._stuck_since = now
        stuck = now - self._stuck_since
        if stuck > self.patience:
            raise WorkFailed(
                f"no worker for {stuck:.0f} s (workers.patience){self._last_failed_start}: nothing is lost, --resume "
                "when there are workers again"
            )
        if stuck > SAY_SO_AFTER and now - self._said_so > SAY_SO_EVERY:
            self._said_so = now
            logger.warning(
                "no worker for what is left: waiting for one of %d, giving up after %.0f s more%s",
                self.fleet.wanted,
                self.patience - stuck,
                self._last_failed_start,
            )
