"""Hands units of work to whatever workers there are, and counts every result once.

Workers pull: whoever is idle gets what `schedule` chooses, and the first answer to a unit wins. What a lost worker held
goes to another. A sample whose evaluation fails by itself is quarantined, for all policies. Knows nothing of search,
generations, fitness or Ray.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.dispatch.ray_fleet import Answered, Event, Fleet, Joined, Left, NotStarted, Raised
from orchestrator.dispatch.schedule import Call, Schedule, Shard, Worker
from orchestrator.spec import WorkerSpec
from orchestrator.storage.journal import Journal, policy_key
from workers.unit import CallResult, Failure, PolicySpec, SampleRef, SampleResult, Unit

logger = logging.getLogger(__name__)

TRIES = 3
"""Failures (or workers on which it ran out of time) after which an evaluation's samples are quarantined."""
DEATHS = 10
"""Workers that may die with an evaluation in hand before it is taken for the cause, and the job stops."""
QUARANTINED_AT_MOST = 100
"""Samples that may fail before something else must be wrong."""
PREPARED_TOGETHER = 8
"""Prompts that a worker renders in one call."""
SAY_SO_AFTER = 30.0
"""Seconds without a worker before that is said."""


class WorkFailed(RuntimeError):
    """The work cannot go on; one line says why. What is done is in the journal."""


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


@dataclass
class Dispatcher:
    """A fleet of workers behind one journal."""

    fleet: Fleet
    spec: WorkerSpec
    journal: Journal
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self._schedule = Schedule()
        self._answers: dict[int, Answered | Raised] = {}
        """To questions."""
        self._found: list[tuple[str, SampleResult]] = []
        self._stuck_since: float | None = None
        self._said_so = 0.0
        self._without_redis: set[int] = set()
        self._last_failed_start = ""
        self._progress: Callable[[int], None] = lambda done: None

    @property
    def workers(self) -> int:
        """Workers that are ready."""
        return len(self._schedule.workers)

    def evaluate(
        self,
        policies: list[PolicySpec],
        samples: list[SampleRef],
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[list[SampleResult | None]]:
        """Results[policy][sample]; None where the sample is quarantined.

        progress: called with the number of results that arrived. Raises WorkFailed when the work cannot go on,
        ValueError when no worker can load what the configuration names.
        """
        keys = [policy_key(policy) for policy in policies]
        self._progress, self._stuck_since = progress, None
        shards = self._missing(policies, keys, samples)
        self._schedule.begin(shards)
        progress(len(policies) * len(samples) - sum(len(s.keys) * len(s.unit.samples) for s in shards))
        try:
            while self._schedule.open:
                self._hand_out()
                self._keep()
                self._step()
        finally:
            self._keep()
        lost = self.journal.quarantined
        return [[None if ref in lost else self.journal.get(key, ref) for ref in samples] for key in keys]

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of one worker's evaluator; another worker is asked when it is lost on the way."""
        return self.ask_each(method, [arguments])[0]

    def ask_each(
        self, method: str, arguments: Sequence[tuple], progress: Callable[[int], None] = lambda done: None
    ) -> list:
        """What a method of the evaluators returns for each of the arguments, shared among the workers.

        progress: called with the number of answers that arrived.
        """
        self._stuck_since = None
        waiting, answers, lost = deque(range(len(arguments))), {}, Counter()
        asked: dict[int, tuple[int, Call]] = {}
        while len(answers) < len(arguments):
            for worker in self._schedule.idle()[: len(waiting)]:
                at = waiting.popleft()
                number = self.fleet.send(worker, "ask", method, *arguments[at])
                asked[number] = at, self._schedule.sent(number, worker, [], self.spec.timeout)
            self._step()
            for number in [number for number, (_, call) in asked.items() if call.over]:
                at, _ = asked.pop(number)
                answer = self._answers.pop(number, None)
                if isinstance(answer, Raised):
                    raise answer.error
                if answer is None:
                    lost[at] += 1
                    if lost[at] >= DEATHS:
                        raise WorkFailed(f"{DEATHS} workers died over {method!r}: look at the Ray logs, then --resume")
                    waiting.appendleft(at)
                else:
                    answers[at] = answer.value
                    progress(1)
        return [answers[at] for at in range(len(arguments))]

    def prepare(self, samples: Sequence[SampleRef], progress: Callable[[int], None] = lambda done: None) -> None:
        """Renders and tokenises prompts on all workers, for all workers: each is made once in a cluster.

        progress: called with the number of prompts that are ready.
        """
        parts = [(list(samples[at : at + PREPARED_TOGETHER]),) for at in range(0, len(samples), PREPARED_TOGETHER)]
        self.cost.misses += sum(self.ask_each("prepare", parts, lambda done: progress(done * PREPARED_TOGETHER)))

    def wait_for(self, workers: int) -> None:
        """Waits until so many workers are ready."""
        self._stuck_since = None
        while self.workers < workers:
            self._step()

    def quiet(self) -> None:
        """Waits until no worker is at work: copies of units that another one finished may still be under way."""
        while self._schedule.calls:
            self._step()

    def _missing(self, policies: list[PolicySpec], keys: list[str], samples: list[SampleRef]) -> list[Shard]:
        """Units of fixed shape that hold some result which the journal lacks, samples varying fastest."""
        shards, lost = [], self.journal.quarantined
        for some in self._batches(policies):
            for j in range(0, len(samples), self.spec.samples_per_call):
                refs = tuple(samples[j : j + self.spec.samples_per_call])
                if any(ref in lost for ref in refs):
                    continue
                if any(self.journal.get(key, ref) is None for key in keys[some] for ref in refs):
                    shards.append(Shard(Unit(tuple(policies[some]), refs), tuple(keys[some])))
        return shards

    def _batches(self, policies: list[PolicySpec]) -> Iterator[slice]:
        """Policies that share a unit: neighbours that differ in theta alone, as many as the job says."""
        start = 0
        while start < len(policies):
            stop, end = start + 1, min(len(policies), start + self.spec.candidates_per_call)
            while stop < end and policies[start].shares_batch(policies[stop]):
                stop += 1
            yield slice(start, stop)
            start = stop

    def _hand_out(self) -> None:
        for worker in self._schedule.idle():
            shards, copies = self._schedule.choose(worker)
            if shards:
                call = self.fleet.send(worker, "evaluate", [shard.unit for shard in shards])
                self._schedule.sent(call, worker, shards, self.spec.timeout)
                self.cost.copies += copies * len(shards)

    def _step(self) -> None:
        """Takes in what has happened, and ends calls that are past their limit."""
        now, calls = time.monotonic(), self._schedule.calls
        first = min((call.deadline for call in calls.values()), default=now + 1.0)
        pause = 0.25 if calls and self._schedule.idle() else 1.0  # an idle worker may take a copy soon
        for event in self.fleet.wait(min(max(first - now, 0.0), pause)):
            self._handle(event)
        now = time.monotonic()
        for call in [call for call in calls.values() if call.deadline <= now]:
            self._too_late(call)
        self._watch_for_workers(now)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Joined):
            self._schedule.workers[event.worker] = Worker(event.info.memory)
        elif isinstance(event, Answered | Raised):
            call = self._schedule.over(event.call)
            if call.shards:
                self._take(call, event)
            else:
                self._answers[event.call] = event
        elif isinstance(event, Left):
            self._left(event)
        elif isinstance(event, NotStarted):
            if isinstance(event.error, ValueError) and not self.cost.calls and not self.workers:
                raise event.error
            self._last_failed_start = f"; a worker could not start: {event.error}"
            logger.warning("a worker could not start: %s; it is tried again", event.error)

    def _take(self, call: Call, event: Answered | Raised) -> None:
        if isinstance(event, Raised):  # not an evaluation's own error: that would be an answer
            raise WorkFailed(f"a worker cannot work: {type(event.error).__name__}: {event.error}")
        answer: CallResult = event.value
        worker, done = self._schedule.workers[call.worker], 0
        for shard, outcome in zip(call.shards, answer.outcomes, strict=True):
            if outcome is None:
                self._schedule.again(shard)
                continue
            done += 1
            if shard not in self._schedule.open:
                continue  # another worker was faster
            if isinstance(outcome, Failure):
                self._failed(shard, outcome, worker)
                continue
            self._schedule.open.discard(shard)
            self._found += [(key, result) for key, row in zip(shard.keys, outcome, strict=True) for result in row]
        self.cost.worker_seconds += answer.seconds
        self.cost.hits += answer.hits
        self.cost.misses += answer.misses
        self.cost.calls += 1
        self._hear_of_redis(call.worker, answer.redis_lost)
        if done:
            self._schedule.learn(call.worker, answer.seconds, done)

    def _hear_of_redis(self, number: int, lost: bool) -> None:
        before = bool(self._without_redis)
        (self._without_redis.add if lost else self._without_redis.discard)(number)
        if bool(self._without_redis) != before:
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

    def _failed(self, shard: Shard, failure: Failure, worker: Worker) -> None:
        if failure.kind == "memory":
            self._out_of_memory(shard, worker.memory, failure.reason)
            return
        shard.errors += 1
        if shard.errors >= TRIES:
            self._quarantine(shard, f"failed {TRIES} times: {failure.reason}")
        else:
            self._schedule.again(shard, first=False)

    def _out_of_memory(self, shard: Shard, had: int, reason: str) -> None:
        """A unit was too large for a worker: only a larger one gets it."""
        shard.memory = max(shard.memory, had)
        largest = max((worker.memory for worker in self._schedule.workers.values()), default=had)
        if largest <= shard.memory:
            raise WorkFailed(
                f"out of memory on the largest worker ({had / 2**30:.1f} GiB) at {shard.names} ({reason}): lower "
                "workers.candidates_per_call or workers.samples_per_call under another name; or --resume with larger "
                "workers, or with fewer on a machine (workers.count)"
            )
        logger.warning("out of memory at %s with %.1f GiB; it goes to a larger worker", shard.names, had / 2**30)
        self._schedule.again(shard)

    def _left(self, event: Left) -> None:
        """A worker is gone; its units go to others."""
        self.cost.lost += 1
        self._without_redis.discard(event.worker)
        worker, call = self._schedule.workers[event.worker], None
        if worker.call is not None:
            call = self._schedule.over(worker.call)
        del self._schedule.workers[event.worker]
        units = f"; its {len(call.shards)} unit(s) go to others" if call and call.shards else ""
        logger.warning("a worker %s%s", event.reason, units)
        for shard in reversed(call.shards if call else []):
            if shard not in self._schedule.open:
                continue
            shard.deaths += 1
            shard.alone |= event.memory or shard.deaths >= TRIES
            shard.starved += event.memory and len(call.shards) == 1
            if shard.starved >= TRIES:  # fewer may be somebody else's doing
                self._out_of_memory(shard, worker.memory, f"killed by its machine {TRIES} times")
            elif shard.deaths >= DEATHS:
                raise WorkFailed(
                    f"{DEATHS} workers died over {shard.names}: it may need more memory than a worker has "
                    "(workers.samples_per_call), or look at the Ray logs; then --resume"
                )
            self._schedule.again(shard)

    def _too_late(self, call: Call) -> None:
        """Kills a worker that does not answer; an evaluation that was alone with it counts as late."""
        for shard in call.shards:
            shard.deaths -= 1  # the end that follows is ours
            shard.late += len(call.shards) == 1
            shard.alone = True
            if shard.late >= TRIES and shard in self._schedule.open:
                self._quarantine(shard, f"not done within {self.spec.timeout:.0f} s on {TRIES} workers")
        self.fleet.end(call.worker, f"did not answer within {call.deadline - call.started:.0f} s")
        call.deadline = float("inf")

    def _quarantine(self, shard: Shard, reason: str) -> None:
        logger.warning("quarantined, for all candidates: %s (%s)", shard.names, reason)
        self.journal.quarantine(shard.unit.samples, reason)
        lost = self.journal.quarantined
        if len(lost) > QUARANTINED_AT_MOST:
            raise WorkFailed(f"more than {QUARANTINED_AT_MOST} samples failed; the last one: {shard.names} ({reason})")
        done = {s for s in self._schedule.open if any(ref in lost for ref in s.unit.samples)}
        self._schedule.open -= done

    def _watch_for_workers(self, now: float) -> None:
        """Says when there is work but no worker for it, and gives up in the end."""
        if self._schedule.calls:
            self._stuck_since = None
            return
        if self._stuck_since is None:
            self._stuck_since = now
        stuck = now - self._stuck_since
        if stuck > self.spec.patience:
            raise WorkFailed(
                f"no worker for {stuck:.0f} s (workers.patience){self._last_failed_start}: nothing is lost, --resume "
                "when there are workers again"
            )
        if stuck > SAY_SO_AFTER and now - self._said_so > 60.0:
            self._said_so = now
            logger.warning(
                "no worker for what is left: waiting for one of %d, giving up after %.0f s more%s",
                self.fleet.wanted,
                self.spec.patience - stuck,
                self._last_failed_start,
            )
