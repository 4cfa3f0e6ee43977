"""Who gets which units of work when: by pace, by size, and towards the end twice.

Knows units, and workers by what they hold and how fast they are; nothing of results, faults, or how a worker is
reached.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from workers.unit import Unit

SECONDS_A_CALL = 10.0
"""Work that is sent together while there is plenty: it hides the trip, and is what a lost worker costs."""


@dataclass(eq=False)
class Shard:
    """A unit under way, and what befell it."""

    unit: Unit
    keys: tuple[str, ...]
    """`policy_key` of each of its policies."""
    held: int = 0
    """Calls that hold it."""
    alone: bool = False
    """Whether it is sent by itself, so that a failure is its own."""
    memory: int = 0
    """Bytes that were too few for it."""
    errors: int = 0
    late: int = 0
    deaths: int = 0
    starved: int = 0

    @property
    def names(self) -> str:
        return ", ".join("/".join(map(str, ref)) for ref in self.unit.samples)

    def fits(self, memory: int) -> bool:
        """Whether a worker with so many bytes may get it; 0 is unknown."""
        return not self.memory >= memory > 0


@dataclass(eq=False)
class Worker:
    """A worker that is ready."""

    memory: int
    """Bytes, 0 where unknown."""
    pace: float | None = None
    """Seconds a unit; None before its first answer."""
    call: int | None = None
    """What it is doing."""


@dataclass(eq=False)
class Call:
    """Units that travelled together."""

    worker: int
    shards: list[Shard]
    started: float
    deadline: float
    over: bool = False


@dataclass
class Schedule:
    """What is waiting, who is there, and who has what."""

    workers: dict[int, Worker] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    open: set[Shard] = field(default_factory=set)
    """Units without an answer."""
    _waiting: deque[Shard] = field(default_factory=deque)
    _pace: float | None = None

    def begin(self, shards: Iterable[Shard]) -> None:
        """New work, in this order. Answers to earlier work may still come; they no longer count."""
        self._waiting = deque(shards)
        self.open = set(self._waiting)

    def idle(self) -> list[int]:
        """Workers without a call, the fastest first."""
        idle = [number for number, worker in self.workers.items() if worker.call is None]
        return sorted(idle, key=lambda number: self.workers[number].pace or self._pace or 0.0)

    def choose(self, number: int) -> tuple[list[Shard], bool]:
        """What an idle worker is to do next, and whether these are copies of what another one has."""
        worker = self.workers[number]
        if shards := self._next_for(worker):
            return shards, False
        return self._copies_for(worker), True

    def sent(self, call: int, number: int, shards: list[Shard], timeout: float) -> Call:
        """Notes a call. An evaluation has `timeout` seconds; those that travel with it four times what they should
        take."""
        worker, now = self.workers[number], time.monotonic()
        limit = timeout + 4 * max(len(shards) - 1, 0) * (worker.pace or self._pace or timeout)
        for shard in shards:
            shard.held += 1
        worker.call = call
        self.calls[call] = Call(number, shards, now, now + limit)
        return self.calls[call]

    def over(self, call: int) -> Call:
        """Notes that a call is over; what it held is held by one less."""
        done = self.calls.pop(call)
        done.over = True
        self.workers[done.worker].call = None
        for shard in done.shards:
            shard.held -= 1
        return done

    def learn(self, number: int, seconds: float, units: int) -> None:
        """A worker took `seconds` for so many units."""
        worker, pace = self.workers[number], max(seconds / units, 1e-4)
        worker.pace = pace if worker.pace is None else 0.5 * (worker.pace + pace)
        self._pace = pace if self._pace is None else 0.8 * self._pace + 0.2 * pace

    def again(self, shard: Shard, first: bool = True) -> None:
        """Puts a unit back, in front or last, unless it is done or another worker still has it."""
        if shard in self.open and not shard.held and shard not in self._waiting:
            (self._waiting.appendleft if first else self._waiting.append)(shard)

    def _next_for(self, worker: Worker) -> list[Shard]:
        """Units for a worker: some seconds of work by its own pace, and a fair part of what is left."""
        pace, share = worker.pace or self._pace, 1
        if pace is not None:
            left = len(self._waiting) * (self._pace or pace)
            seconds = min(SECONDS_A_CALL, left / (2 * len(self.workers)))
            share = max(int(seconds / pace), 1)
        shards: list[Shard] = []
        passed: list[Shard] = []
        while self._waiting and len(shards) < share:
            shard = self._waiting.popleft()
            if shard not in self.open:
                continue
            if not shard.fits(worker.memory) or (shard.alone and shards):
                passed.append(shard)
                continue
            shards.append(shard)
            if shard.alone:
                break
        self._waiting.extendleft(reversed(passed))
        return shards

    def _copies_for(self, worker: Worker) -> list[Shard]:
        """A part of what the latest call still holds, if this worker would be done with it sooner."""
        pace = worker.pace or self._pace
        if pace is None:
            return []
        now, idle, best, latest = time.monotonic(), len(self.idle()), [], 0.0
        for call in self.calls.values():
            shards = [s for s in call.shards if s in self.open and s.held == 1 and s.fits(worker.memory)]
            part = shards[: math.ceil(len(shards) / idle)]
            expected = call.started + len(call.shards) * (self.workers[call.worker].pace or pace)
            remaining = expected - now if now < expected else now - expected  # late: as late again
            if part and remaining > max(latest, pace * len(part)):
                best, latest = part, remaining
        return best[:1] if any(shard.alone for shard in best) else best
