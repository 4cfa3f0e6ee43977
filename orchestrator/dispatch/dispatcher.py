"""Hands units of work to whatever workers there are, and counts every result once.

Workers pull: whoever is idle gets what `schedule` chooses, and the first result of a unit wins. What a lost worker
held goes to another; what failures mean is `faults`' to say. Knows nothing of search, generations, fitness or Ray.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.dispatch.faults import DEATHS, Faults
from orchestrator.dispatch.pool import Call, Pool, Worker
from orchestrator.dispatch.schedule import Schedule
from orchestrator.dispatch.work import WorkFailed, WorkItem
from orchestrator.fleet_events import Answered, Left, Raised
from orchestrator.protocols import Fleet, Group
from orchestrator.spec import WorkerSpec
from orchestrator.storage.journal import Journal, policy_key
from workers.unit import CallResult, Failure, PolicySpec, SampleRef, SampleResult, Unit

logger = logging.getLogger(__name__)

PREPARED_TOGETHER = 8
"""Prompts that a worker renders in one call."""


def unheard(count: int) -> None:
    """For callers that do not want to know how far the work is."""


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
    calls: int = 0
    """Calls answered."""
    copies: int = 0
    """Units sent to a second worker."""
    lost: int = 0
    """Workers that died, hung or left."""


class Dispatcher:
    """A fleet of workers behind one journal.

    Attributes:
        fleet, journal: as given.
        cost: what the work has cost so far.
    """

    def __init__(self, fleet: Fleet, spec: WorkerSpec, journal: Journal) -> None:
        self.fleet, self.journal, self.cost = fleet, journal, Cost()
        self._spec, self._pool = spec, Pool(fleet, spec.patience)
        self._schedule = Schedule(self._pool, spec.timeout)
        self._faults = Faults(self._schedule, self._pool, journal, spec.timeout)
        self._found: list[tuple[str, SampleResult]] = []
        """Results that are not in the journal yet, with their policy's key."""
        self._progress: Callable[[int], None] = unheard

    @property
    def workers(self) -> int:
        """Workers that are ready."""
        return len(self._pool.workers)

    def evaluate(
        self, policies: list[PolicySpec], samples: list[SampleRef], progress: Callable[[int], None] = unheard
    ) -> list[list[SampleResult | None]]:
        """Results[policy][sample]; None where the sample is quarantined.

        progress: called with the number of results that arrived. Raises WorkFailed when the work cannot go on,
        ValueError when no worker can load what the configuration names.
        """
        return self.evaluate_groups([(policies, samples)], progress)[0]

    def evaluate_groups(
        self, groups: Sequence[Group], progress: Callable[[int], None] = unheard
    ) -> list[list[list[SampleResult | None]]]:
        """The results of each group, as `evaluate` gives them; all groups are asked for at once, so that no worker
        waits for the end of one."""
        keyed = [(policies, [policy_key(policy) for policy in policies], samples) for policies, samples in groups]
        self._progress = progress
        self._pool.work_begins()
        items = [item for group in keyed for item in self._missing(*group)]
        self._schedule.begin(items)
        wanted = sum(len(policies) * len(samples) for policies, samples in groups)
        progress(wanted - sum(len(item.keys) * len(item.unit.samples) for item in items))
        try:
            while self._schedule.open:
                self.cost.copies += self._schedule.hand_out()
                self._keep()
                self._step()
        finally:
            self._keep()
        lost, get = self.journal.quarantined, self.journal.get
        return [
            [[None if ref in lost else get(key, ref) for ref in samples] for key in keys] for _, keys, samples in keyed
        ]

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of one worker's evaluator; another worker is asked when it is lost on the way.

        Raises what the method raises.
        """
        return self.ask_each(method, [arguments])[0]

    def ask_each(self, method: str, arguments: Sequence[tuple], progress: Callable[[int], None] = unheard) -> list[Any]:
        """What a method of the evaluators returns for each of the arguments, shared among the workers.

        progress: called with 1 for each answer that arrived. Raises what the method raises, and WorkFailed when
        workers die of it.
        """
        self._pool.work_begins()
        waiting, lost = deque(range(len(arguments))), Counter[int]()
        asked: dict[int, Call] = {}
        answers: dict[int, Any] = {}
        while len(answers) < len(arguments):
            for worker in self._pool.idle()[: len(waiting)]:
                at = waiting.popleft()
                asked[at] = self._pool.send(worker, self._spec.timeout, "ask", method, *arguments[at])
            self._step()
            for at, end in [(at, call.end) for at, call in asked.items() if call.end is not None]:
                del asked[at]
                if isinstance(end, Raised):
                    raise end.error
                if isinstance(end, Answered):
                    answers[at] = end.value
                    progress(1)
                    continue
                lost[at] += 1
                if lost[at] >= DEATHS:
                    raise WorkFailed(f"{DEATHS} workers died over {method!r}: look at the Ray logs, then --resume")
                waiting.appendleft(at)
        return [answers[at] for at in range(len(arguments))]

    def prepare(self, samples: Sequence[SampleRef], progress: Callable[[int], None] = unheard) -> None:
        """Renders and tokenises prompts on all workers, for all workers: each is made once in a cluster.

        progress: called with the number of prompts that are ready.
        """
        parts = [(list(samples[at : at + PREPARED_TOGETHER]),) for at in range(0, len(samples), PREPARED_TOGETHER)]
        self.cost.misses += sum(self.ask_each("prepare", parts, lambda done: progress(done * PREPARED_TOGETHER)))

    def wait_for(self, workers: int) -> None:
        """Waits until so many workers are ready. Raises WorkFailed when none comes for too long."""
        self._pool.work_begins()
        while self.workers < workers:
            self._step()

    def quiet(self) -> None:
        """Waits until no worker is busy: copies of units that another one finished may still be under way."""
        while self._pool.calls:
            self._step()

    def _missing(self, policies: list[PolicySpec], keys: list[str], samples: list[SampleRef]) -> list[WorkItem]:
        """Units of fixed shape that contain a result which the journal lacks, samples varying fastest."""
        items, lost = [], self.journal.quarantined
        for some in self._batches(policies):
            for j in range(0, len(samples), self._spec.samples_per_call):
                refs = tuple(samples[j : j + self._spec.samples_per_call])
                if any(ref in lost for ref in refs):
                    continue
                if any(self.journal.get(key, ref) is None for key in keys[some] for ref in refs):
                    items.append(WorkItem(Unit(tuple(policies[some]), refs), tuple(keys[some])))
        return items

    def _batches(self, policies: list[PolicySpec]) -> Iterator[slice]:
        """Policies that share a unit: neighbours that differ in theta alone, as many as the job says."""
        start = 0
        while start < len(policies):
            stop, end = start + 1, min(len(policies), start + self._spec.candidates_per_call)
            while stop < end and policies[start].shares_batch(policies[stop]):
                stop += 1
            yield slice(start, stop)
            start = stop

    def _step(self) -> None:
        """Takes in what has happened since the last step."""
        try:
            for call in self._pool.step():
                self._schedule.returned(call)
                if not call.items:
                    continue  # a question: whoever asked looks at its end
                if isinstance(call.end, Left):
                    self._faults.lost(call, call.end)
                elif isinstance(call.end, Raised):  # not an evaluation's own error: that would be a result
                    error = call.end.error
                    raise WorkFailed(f"a worker cannot work: {type(error).__name__}: {error}")
                elif isinstance(call.end, Answered):
                    self._take(call, call.end.value)
        finally:
            self.cost.lost = self._pool.lost

    def _take(self, call: Call, result: CallResult) -> None:
        """Takes in what a worker sent back for the units of a call."""
        done = 0
        for item, outcome in zip(call.items, result.outcomes, strict=True):
            if outcome is None:
                self._schedule.again(item)  # handed back undone
                continue
            done += 1
            if item not in self._schedule.open:
                continue  # another worker was faster
            if isinstance(outcome, Failure):
                self._faults.failed(item, outcome, call.worker.memory)
                continue
            self._schedule.open.discard(item)
            self._found += [(key, found) for key, row in zip(item.keys, outcome, strict=True) for found in row]
        self.cost.worker_seconds += result.seconds
        self.cost.hits += result.hits
        self.cost.misses += result.misses
        self.cost.calls += 1
        self._hear_of_redis(call.worker, result.redis_lost)
        if done:
            self._pool.learn(call.worker, result.seconds, done)

    def _hear_of_redis(self, worker: Worker, lost: bool) -> None:
        """Says so when the first worker loses Redis, and when the last one has it back."""
        before = any(other.without_redis for other in self._pool.workers.values())
        worker.without_redis = lost
        if before != any(other.without_redis for other in self._pool.workers.values()):
            logger.warning(
                "Redis is lost: workers go on with prompts of their own" if lost else "Redis is back for all workers"
            )

    def _keep(self) -> None:
        """Writes what has arrived to disk, all at once: a sync costs milliseconds, and there may be 256 workers."""
        if self._found:
            fresh = self.journal.put(self._found)
            self.cost.evaluations += len(fresh)
            self.cost.tokens += sum(result.tokens for result in fresh)
            arrived, self._found = len(self._found), []
            self._progress(arrived)
