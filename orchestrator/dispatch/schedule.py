"""Who gets which units of work, and when: by pace, by size, and towards the end some units twice.

Knows units on their way, and workers by their memory and pace; nothing of results, of what failures mean, or of how a
worker is reached.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable

from orchestrator.dispatch.pool import Call, Pool, Worker
from orchestrator.dispatch.work import WorkItem

SECONDS_A_CALL = 10.0
"""Work that is sent together while there is plenty: it hides the trip, and is what a lost worker costs."""


class Schedule:
    """What is waiting, and who is to do it. timeout: seconds that the evaluation of a unit may take.

    Attributes:
        open: units without a result, waiting or under way.
    """

    def __init__(self, pool: Pool, timeout: float) -> None:
        self.open: set[WorkItem] = set()
        self._waiting: deque[WorkItem] = deque()
        self._pool, self._timeout = pool, timeout

    def begin(self, items: Iterable[WorkItem]) -> None:
        """New work, in this order. Results of earlier work may still arrive; they no longer count."""
        self._waiting = deque(items)
        self.open = set(self._waiting)

    def hand_out(self) -> int:
        """Sends every idle worker what it is to do next; returns how many units of that are copies."""
        copies = 0
        for worker in self._pool.idle():
            items = self._next_for(worker)
            if not items:
                items = self._copies_for(worker)
                copies += len(items)
            if items:
                limit, units = self._limit(worker, len(items)), [item.unit for item in items]
                self._pool.send(worker, limit, "evaluate", units, items=items)
                for item in items:
                    item.held += 1
        return copies

    def returned(self, call: Call) -> None:
        """A call is over: one call less holds its units."""
        for item in call.items:
            item.held -= 1

    def again(self, item: WorkItem, first: bool = True) -> None:
        """Puts a unit back, in front or last, unless it is done or another worker still has it."""
        if item in self.open and not item.held and item not in self._waiting:
            (self._waiting.appendleft if first else self._waiting.append)(item)

    def _limit(self, worker: Worker, units: int) -> float:
        """Seconds for a call: one unit has the job's limit, those beside it four times what they should take."""
        return self._timeout + 4 * (units - 1) * (self._pool.pace(worker) or self._timeout)

    def _next_for(self, worker: Worker) -> list[WorkItem]:
        """Units for a worker: some seconds of work by its own pace, and a fair part of what is left."""
        pace, share = self._pool.pace(worker), 1
        if pace is not None:
            left = len(self._waiting) * (self._pool.mean_pace or pace)
            seconds = min(SECONDS_A_CALL, left / (2 * len(self._pool.workers)))
            share = max(int(seconds / pace), 1)
        items: list[WorkItem] = []
        passed: list[WorkItem] = []
        while self._waiting and len(items) < share:
            item = self._waiting.popleft()
            if item not in self.open:
                continue
            if not item.fits(worker.memory) or (item.alone and items):
                passed.append(item)
                continue
            items.append(item)
            if item.alone:
                break
        self._waiting.extendleft(reversed(passed))
        return items

    def _copies_for(self, worker: Worker) -> list[WorkItem]:
        """A part of what the latest call still holds, if this worker would be done with it sooner."""
        pace = self._pool.pace(worker)
        if pace is None:
            return []
        now, idle, latest = time.monotonic(), len(self._pool.idle()), 0.0
        best: list[WorkItem] = []
        for call in self._pool.calls.values():
            items = [i for i in call.items if i in self.open and i.held == 1 and i.fits(worker.memory)]
            part = items[: math.ceil(len(items) / idle)]
            expected = call.started + len(call.items) * (call.worker.pace or pace)
            remaining = expected - now if now < expected else now - expected  # late: as late again
            if part and remaining > max(latest, pace * len(part)):
                best, latest = part, remaining
        return best[:1] if any(item.alone for item in best) else best
