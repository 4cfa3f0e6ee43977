"""What failures mean: a unit is tried again, its samples are quarantined for all policies, or the job stops.

A lost worker is never an evaluation's fault until several die of the same one. Knows neither how work is shared out
nor what results are.
"""

from __future__ import annotations

import logging

from orchestrator.dispatch.pool import Call, Pool
from orchestrator.dispatch.schedule import Schedule
from orchestrator.dispatch.work import WorkFailed, WorkItem
from orchestrator.fleet_events import Left
from orchestrator.storage.journal import Journal
from workers.unit import Failure

logger = logging.getLogger(__name__)

TRIES = 3
"""Failures (or workers on which it ran out of time) after which an evaluation's samples are quarantined."""
DEATHS = 10
"""Workers that may die with an evaluation in hand before it is taken for the cause, and the job stops."""
QUARANTINED_AT_MOST = 100
"""Samples that may fail before something else must be wrong."""


class Faults:
    """Judges units that failed. timeout: seconds that the evaluation of one may take, for messages."""

    def __init__(self, schedule: Schedule, pool: Pool, journal: Journal, timeout: float) -> None:
        self._schedule, self._pool, self._journal, self._timeout = schedule, pool, journal, timeout

    def failed(self, item: WorkItem, failure: Failure, memory: int) -> None:
        """A unit's evaluation raised an error on a worker with so many bytes of memory.

        Raises WorkFailed if it ran out of memory and no worker has more, or if too many samples have failed.
        """
        if failure.kind == "memory":
            self._out_of_memory(item, memory, failure.reason)
            return
        item.errors += 1
        if item.errors >= TRIES:
            self._quarantine(item, f"failed {TRIES} times: {failure.reason}")
        else:
            self._schedule.again(item, first=False)

    def lost(self, call: Call, left: Left) -> None:
        """A worker is gone, with this call in hand. Raises WorkFailed as `failed` does, and after too many deaths."""
        for item in reversed(call.items):
            if item in self._schedule.open:
                if call.late:
                    self._late(item, len(call.items) == 1)
                else:
                    self._died(item, len(call.items) == 1, left.memory, call.worker.memory)
                self._schedule.again(item)

    def _late(self, item: WorkItem, by_itself: bool) -> None:
        """Its worker did not answer in time and was ended."""
        item.late += by_itself
        item.alone = True
        if item.late >= TRIES:
            self._quarantine(item, f"not done within {self._timeout:.0f} s on {TRIES} workers")

    def _died(self, item: WorkItem, by_itself: bool, starved: bool, memory: int) -> None:
        """Its worker died, of hunger for memory or otherwise."""
        item.deaths += 1
        item.alone |= starved or item.deaths >= TRIES
        item.starved += starved and by_itself
        if item.starved >= TRIES:  # fewer may be somebody else's doing
            self._out_of_memory(item, memory, f"killed by its machine {TRIES} times")
        elif item.deaths >= DEATHS:
            raise WorkFailed(
                f"{DEATHS} workers died over {item.names}: it may need more memory than a worker has "
                "(workers.samples_per_call), or look at the Ray logs; then --resume"
            )

    def _out_of_memory(self, item: WorkItem, had: int, reason: str) -> None:
        """A unit was too large for a worker: only a larger one gets it from now on."""
        item.memory = max(item.memory, had)
        largest = max((worker.memory for worker in self._pool.workers.values()), default=had)
        if largest <= item.memory:
            raise WorkFailed(
                f"out of memory on the largest worker ({had / 2**30:.1f} GiB) at {item.names} ({reason}): lower "
                "workers.candidates_per_call or workers.samples_per_call under another name; or --resume with larger "
                "workers, or with fewer on a machine (workers.count)"
            )
        logger.warning("out of memory at %s with %.1f GiB; it goes to a larger worker", item.names, had / 2**30)
        self._schedule.again(item)

    def _quarantine(self, item: WorkItem, reason: str) -> None:
        logger.warning("quarantined, for all candidates: %s (%s)", item.names, reason)
        self._journal.quarantine(item.unit.samples, reason)
        lost = self._journal.quarantined
        if len(lost) > QUARANTINED_AT_MOST:
            raise WorkFailed(f"more than {QUARANTINED_AT_MOST} samples failed; the last one: {item.names} ({reason})")
        self._schedule.open -= {i for i in self._schedule.open if any(ref in lost for ref in i.unit.samples)}
