"""Hands units of work to whatever workers there are, and counts every result once.

Workers pull: whoever is idle gets the next units, some seconds of work; towards the end, copies of what the slowest
still hold, and the first answer wins. What a lost worker held goes to another. A sample whose evaluation fails by
itself is quarantined, for all policies. Knows nothing of search, generations, fitness or Ray.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.fleet import Answered, Event, Fleet, Joined, Left, NotStarted, Raised
from orchestrator.journal import Journal, policy_key
from orchestrator.spec import WorkerSpec
from workers.unit import Answer, Failure, PolicySpec, SampleRef, SampleResult, Unit

logger = logging.getLogger(__name__)

SECONDS_A_CALL = 10.0
"""Work that is sent together while there is plenty: it hides the trip, and is what a lost worker costs."""
TRIES = 3
"""Failures (or workers on which it ran out of time) after which an evaluation's samples are quarantined."""
DEATHS = 10
"""Workers that may die with an evaluation in hand before it is taken for the cause, and the job stops."""
QUARANTINED_AT_MOST = 100
"""Samples that may fail before something else must be wrong."""
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


@dataclass(eq=False)
class _Shard:
    """A unit under way."""

    unit: Unit
    keys: tuple[str, ...]
    held: int = 0
    """Calls that hold it."""
    errors: int = 0
    late: int = 0
    deaths: int = 0
    starved: int = 0
    alone: bool = False
    """Whether it is sent by itself, so that a failure is its own."""
    memory: int = 0
    """Bytes that were too few for it."""

    @property
    def names(self) -> str:
        return ", ".join("/".join(map(str, ref)) for ref in self.unit.samples)


@dataclass(eq=False)
class _Worker:
    memory: int
    pace: float | None = None
    """Seconds a unit; None before its first answer."""
    call: int | None = None


@dataclass(eq=False)
class _Call:
    worker: int
    shards: list[_Shard]
    started: float
    deadline: float
    result: Any = None
    """Of a question (`ask`): what came of it."""
    over: bool = False


@dataclass
class Dispatcher:
    """A fleet of workers behind one journal."""

    fleet: Fleet
    spec: WorkerSpec
    journal: Journal
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self._workers: dict[int, _Worker] = {}
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[_Shard] = deque()
        self._open: set[_Shard] = set()
        self._found: list[tuple[str, SampleResult]] = []
        self._pace: float | None = None
        self._stuck_since: float | None = None
        self._said_so = 0.0
        self._without_redis: set[int] = set()
        self._last_failed_start = ""
        self._progress: Callable[[int], None] = lambda done: None

    @property
    def workers(self) -> int:
        """Workers that are ready."""
        return len(self._workers)

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
        self._waiting = deque(self._missing(policies, keys, samples))
        self._open = set(self._waiting)
        progress(len(policies) * len(samples) - sum(len(s.keys) * len(s.unit.samples) for s in self._open))
        try:
            while self._open:
                self._hand_out()
                self._keep()
                self._step()
        finally:
            self._keep()
        lost = self.journal.quarantined
        return [[None if ref in lost else self.journal.get(key, ref) for ref in samples] for key in keys]

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of one worker's evaluator; another worker is asked when it is lost on the way."""
        self._stuck_since = None
        for _ in range(DEATHS):
            while not (idle := self._idle()):
                self._step()
            call = self._send(idle[0], "ask", [], method, *arguments)
            while not call.over:
                self._step()
            if isinstance(call.result, Raised):
                raise call.result.error
            if call.result is not None:
                return call.result.value
        raise WorkFailed(f"{DEATHS} workers died over {method!r}: look at the Ray logs, then --resume")

    def wait_for(self, workers: int) -> None:
        """Waits until so many workers are ready."""
        self._stuck_since = None
        while len(self._workers) < workers:
            self._step()

    def _missing(self, policies: list[PolicySpec], keys: list[str], samples: list[SampleRef]) -> Iterable[_Shard]:
        """Units of fixed shape that hold some result which the journal lacks, samples varying fastest."""
        samples = [ref for ref in samples if ref not in self.journal.quarantined]
        wide = self.spec.candidates_per_call if all(p.name == "namm" for p in policies) else 1
        for i in range(0, len(policies), wide):
            for j in range(0, len(samples), self.spec.samples_per_call):
                some, refs = slice(i, i + wide), tuple(samples[j : j + self.spec.samples_per_call])
                if any(self.journal.get(key, ref) is None for key in keys[some] for ref in refs):
                    yield _Shard(Unit(tuple(policies[some]), refs), tuple(keys[some]))

    # Sending.

    def _idle(self) -> list[int]:
        """Idle workers, the fastest first."""
        idle = [number for number, worker in self._workers.items() if worker.call is None]
        return sorted(idle, key=lambda number: self._workers[number].pace or self._pace or 0.0)

    def _hand_out(self) -> None:
        for number in self._idle():
            worker = self._workers[number]
            if shards := self._next_for(worker) or self._copies_for(worker):
                self._send(number, "evaluate", shards, [shard.unit for shard in shards])

    def _send(self, number: int, method: str, shards: list[_Shard], *arguments: Any) -> _Call:
        worker, now = self._workers[number], time.monotonic()
        # An evaluation has `timeout`; those that travel with it four times what they should take.
        limit = self.spec.timeout + 4 * max(len(shards) - 1, 0) * (worker.pace or self._pace or self.spec.timeout)
        worker.call = self.fleet.send(number, method, *arguments)
        for shard in shards:
            shard.held += 1
        call = self._calls[worker.call] = _Call(number, shards, now, now + limit)
        return call

    def _next_for(self, worker: _Worker) -> list[_Shard]:
        """Units for a worker: some seconds of work by its own pace, and a fair part of what is left."""
        pace = worker.pace or self._pace
        if pace is None:
            share = 1
        else:
            left = len(self._waiting) * (self._pace or pace)
            seconds = min(SECONDS_A_CALL, left / (2 * len(self._workers)))
            share = max(int(seconds / pace), 1)
        shards: list[_Shard] = []
        passed: list[_Shard] = []
        while self._waiting and len(shards) < share:
            shard = self._waiting.popleft()
            if shard not in self._open:
                continue
            if shard.memory >= worker.memory > 0:
                passed.append(shard)
            elif shard.alone and shards:
                passed.append(shard)
                break
            else:
                shards.append(shard)
                if shard.alone:
                    break
        self._waiting.extendleft(reversed(passed))
        return shards

    def _copies_for(self, worker: _Worker) -> list[_Shard]:
        """A part of what the latest call still holds, if this worker would be done with it sooner."""
        pace = worker.pace or self._pace
        if pace is None:
            return []
        now, idle, best, latest = time.monotonic(), len(self._idle()), [], 0.0
        for call in self._calls.values():
            shards = [s for s in call.shards if s in self._open and s.held == 1 and not s.memory >= worker.memory > 0]
            part = shards[: math.ceil(len(shards) / idle)]
            expected = call.started + len(call.shards) * (self._workers[call.worker].pace or pace)
            remaining = expected - now if now < expected else now - expected  # late: as late again
            if part and remaining > max(latest, pace * len(part)):
                best, latest = part, remaining
        if any(shard.alone for shard in best):
            best = best[:1]
        self.cost.copies += len(best)
        return best

    # Receiving.

    def _step(self) -> None:
        """Takes in what has happened, and ends calls that are past their limit."""
        now = time.monotonic()
        first = min((call.deadline for call in self._calls.values()), default=now + 1.0)
        pause = 0.25 if self._idle() and self._calls else 1.0  # an idle worker may take a copy soon
        for event in self.fleet.wait(min(max(first - now, 0.0), pause)):
            self._handle(event)
        now = time.monotonic()
        for call in [call for call in self._calls.values() if call.deadline <= now]:
            self._too_late(call)
        self._watch_for_workers(now)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Joined):
            self._workers[event.worker] = _Worker(event.info.memory)
        elif isinstance(event, Answered | Raised):
            call = self._over(event.call)
            call.result = event
            if call.shards:
                self._take(call, event)
        elif isinstance(event, Left):
            self._left(event)
        elif isinstance(event, NotStarted):
            if isinstance(event.error, ValueError) and not self.cost.calls and not self._workers:
                raise event.error
            self._last_failed_start = f"; a worker could not start: {event.error}"
            logger.warning("a worker could not start: %s; it is tried again", event.error)

    def _over(self, number: int) -> _Call:
        call = self._calls.pop(number)
        call.over = True
        self._workers[call.worker].call = None
        for shard in call.shards:
            shard.held -= 1
        return call

    def _take(self, call: _Call, event: Answered | Raised) -> None:
        if isinstance(event, Raised):  # not an evaluation's own error: that would be an answer
            raise WorkFailed(f"a worker cannot work: {type(event.error).__name__}: {event.error}")
        answer: Answer = event.value
        done = 0
        for shard, outcome in zip(call.shards, answer.outcomes, strict=True):
            if outcome is None:
                self._again(shard)
                continue
            done += 1
            if shard not in self._open:
                continue  # another worker was faster
            if isinstance(outcome, Failure):
                self._failed(shard, outcome, self._workers[call.worker])
                continue
            self._open.discard(shard)
            self._found += [(key, result) for key, row in zip(shard.keys, outcome, strict=True) for result in row]
        self.cost.worker_seconds += answer.seconds
        self.cost.hits += answer.hits
        self.cost.misses += answer.misses
        self.cost.calls += 1
        self._hear_of_redis(call.worker, answer.redis_lost)
        if done:
            worker, pace = self._workers[call.worker], max(answer.seconds / done, 1e-4)
            worker.pace = pace if worker.pace is None else 0.5 * (worker.pace + pace)
            self._pace = pace if self._pace is None else 0.8 * self._pace + 0.2 * pace

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

    def _again(self, shard: _Shard) -> None:
        """Puts a unit back in front, unless it is done or another worker still has it."""
        if shard in self._open and not shard.held and shard not in self._waiting:
            self._waiting.appendleft(shard)

    def _failed(self, shard: _Shard, failure: Failure, worker: _Worker) -> None:
        if failure.kind == "memory":
            self._out_of_memory(shard, worker.memory, failure.reason)
            return
        shard.errors += 1
        if shard.errors >= TRIES:
            self._quarantine(shard, f"failed {TRIES} times: {failure.reason}")
        elif not shard.held and shard not in self._waiting:
            self._waiting.append(shard)

    def _out_of_memory(self, shard: _Shard, had: int, reason: str) -> None:
        """A unit was too large for a worker: only a larger one gets it."""
        shard.memory = max(shard.memory, had)
        largest = max((worker.memory for worker in self._workers.values()), default=had)
        if largest <= shard.memory:
            raise WorkFailed(
                f"out of memory on the largest worker ({had / 2**30:.1f} GiB) at {shard.names} ({reason}): lower "
                "workers.candidates_per_call or workers.samples_per_call under another name; or --resume with larger "
                "workers, or with fewer on a machine (workers.count)"
            )
        logger.warning("out of memory at %s with %.1f GiB; it goes to a larger worker", shard.names, had / 2**30)
        self._again(shard)

    def _left(self, event: Left) -> None:
        """A worker is gone; its units go to others."""
        self.cost.lost += 1
        self._without_redis.discard(event.worker)
        worker = self._workers[event.worker]
        if worker.call is None:
            del self._workers[event.worker]
            logger.warning("a worker %s", event.reason)
        else:
            call = self._over(worker.call)
            del self._workers[event.worker]
            logger.warning("a worker %s; its %d unit(s) go to others", event.reason, len(call.shards))
            for shard in reversed(call.shards):
                if shard in self._open:
                    shard.deaths += 1
                    shard.alone |= shard.deaths >= TRIES
                    shard.starved += event.memory and len(call.shards) == 1
                    if shard.starved >= TRIES:  # fewer may be somebody else's doing
                        self._out_of_memory(shard, worker.memory, f"killed by its machine {TRIES} times")
                    elif shard.deaths >= DEATHS:
                        raise WorkFailed(
                            f"{DEATHS} workers died over {shard.names}: it may need more memory than a worker has "
                            "(workers.samples_per_call), or look at the Ray logs; then --resume"
                        )
                    shard.alone |= event.memory
                    self._again(shard)

    def _too_late(self, call: _Call) -> None:
        """Kills a worker that does not answer; an evaluation that was alone with it counts as late."""
        for shard in call.shards:
            shard.deaths -= 1  # the end that follows is ours
            shard.late += len(call.shards) == 1
            shard.alone = True
            if shard.late >= TRIES and shard in self._open:
                self._quarantine(shard, f"not done within {self.spec.timeout:.0f} s on {TRIES} workers")
        self.fleet.end(call.worker, f"did not answer within {call.deadline - call.started:.0f} s")
        call.deadline = float("inf")

    def _quarantine(self, shard: _Shard, reason: str) -> None:
        logger.warning("quarantined, for all candidates: %s (%s)", shard.names, reason)
        self.journal.quarantine(shard.unit.samples, reason)
        lost = self.journal.quarantined
        if len(lost) > QUARANTINED_AT_MOST:
            raise WorkFailed(f"more than {QUARANTINED_AT_MOST} samples failed; the last one: {shard.names} ({reason})")
        self._open = {s for s in self._open if not any(ref in lost for ref in s.unit.samples)}

    def _watch_for_workers(self, now: float) -> None:
        """Says when there is work but no worker for it, and gives up in the end."""
        if self._calls:
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
