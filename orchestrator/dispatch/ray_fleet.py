"""The workers as they come and go: Ray actors, started again where they died, more of them as the cluster grows.

Knows how a worker is started, called and ended, and nothing of what it is called for.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray._private.state import state as cluster_state

from orchestrator.spec import WorkerSpec
from workers import actor
from workers.config import EvaluatorConfig
from workers.unit import WorkerInfo

logger = logging.getLogger(__name__)

LOOK_AROUND = 5.0
"""Seconds between two looks at the cluster: nodes that came, nodes that are told to go."""


@dataclass(frozen=True)
class Joined:
    """A worker is ready."""

    worker: int
    info: WorkerInfo


@dataclass(frozen=True)
class Answered:
    """A call returned a value."""

    call: int
    value: Any


@dataclass(frozen=True)
class Raised:
    """A call raised an error; the worker lives."""

    call: int
    error: BaseException


@dataclass(frozen=True)
class Left:
    """A worker is gone, and its call with it."""

    worker: int
    reason: str
    memory: bool = False
    """Whether its machine killed it for want of memory."""


@dataclass(frozen=True)
class NotStarted:
    """A worker could not load its model; it is tried again."""

    error: BaseException


Event = Joined | Answered | Raised | Left | NotStarted


class Fleet(Protocol):
    """Workers by number, each with at most one call at a time."""

    @property
    def wanted(self) -> int:
        """Workers that there would be if there were room for all."""

    def send(self, worker: int, method: str, *arguments: Any) -> int:
        """Calls a method of a worker; returns the call's number."""

    def wait(self, seconds: float) -> list[Event]:
        """What has happened since, after at most `seconds`; returns as soon as there is something."""

    def end(self, worker: int, reason: str) -> None:
        """Ends a worker, whatever it is doing; `Left` follows, and another takes its place."""

    def close(self) -> None:
        """Ends all workers."""


@dataclass
class _Worker:
    actor: ray.actor.ActorHandle
    deadline: float | None = None
    """By when it must have loaded its model; None while it waits for room, and when it is ready."""
    node: str = ""
    busy: bool = False
    leaves: str = ""
    """Why it gets no more calls."""


class RayFleet:
    """Actors on the connected Ray cluster. `evaluator`: `module:class` of what they host."""

    def __init__(self, config: EvaluatorConfig, spec: WorkerSpec, evaluator: str = actor.EVALUATOR) -> None:
        self._config, self._spec, self._evaluator = config, spec, evaluator
        self._numbers = itertools.count()
        self._workers: dict[int, _Worker] = {}
        self._pending: dict[ray.ObjectRef, tuple[str, int, int]] = {}
        """By reference: `up`, `load` or `call`, the worker's number, the call's number."""
        self._events: list[Event] = []
        self._start_again: list[float] = []
        """When the places of workers that are gone are taken again."""
        self._failed_starts = 0
        self._looked = time.monotonic()
        self.wanted = spec.count or max(self._room(), 1)
        for _ in range(self.wanted):
            self._start()

    def send(self, worker: int, method: str, *arguments: Any) -> int:
        """See `Fleet`."""
        call = next(self._numbers)
        handle = self._workers[worker]
        reference = getattr(handle.actor, method).remote(*arguments)
        self._pending[reference] = ("call", worker, call)
        handle.busy = True
        return call

    def wait(self, seconds: float) -> list[Event]:
        """See `Fleet`."""
        end = time.monotonic() + seconds
        while True:
            self._tend()
            left = 0.0 if self._events else max(end - time.monotonic(), 0.0)
            self._collect(min(left, 1.0))
            if self._events or time.monotonic() >= end:
                events, self._events = self._events, []
                return events

    def end(self, worker: int, reason: str) -> None:
        """See `Fleet`."""
        ray.kill(self._workers[worker].actor)
        self._lost(worker, reason)

    def close(self) -> None:
        """See `Fleet`."""
        for worker in self._workers.values():
            ray.kill(worker.actor)
        self._workers, self._pending = {}, {}

    def _start(self) -> None:
        number = next(self._numbers)
        handle = actor.start(self._config, self._spec.gpus, self._evaluator)
        self._workers[number] = _Worker(handle)
        self._pending[handle.up.remote()] = ("up", number, -1)

    def _collect(self, seconds: float) -> None:
        """Turns what Ray has to say within `seconds` into events."""
        if not self._pending:
            time.sleep(min(seconds, 0.1))
            return
        references = list(self._pending)
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds)
        if ready and len(references) > 1:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            if reference in self._pending:  # else its worker was lost on the way through this list
                self._settle(reference, *self._pending.pop(reference))

    def _settle(self, reference: ray.ObjectRef, what: str, number: int, call: int) -> None:
        worker = self._workers[number]
        try:
            value = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if what == "load":
                self._failed_starts += 1
                self._events.append(NotStarted(cause(error)))
                self._lost(number, "could not start", tell=False)
                ray.kill(worker.actor)
            else:
                worker.busy = False
                self._events.append(Raised(call, cause(error)))
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.RaySystemError) as error:
            memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            if what != "call":
                self._failed_starts += 1
                reason = "its machine ran out of memory" if memory else "it died"
                self._events.append(NotStarted(RuntimeError(reason)))
            ray.kill(worker.actor)
            self._lost(number, "ran out of memory" if memory else "died", memory, tell=what == "call")
        else:
            if what == "up":
                worker.deadline = time.monotonic() + self._spec.load_timeout
                self._pending[worker.actor.load.remote()] = ("load", number, -1)
            elif what == "load":
                worker.deadline, self._failed_starts = None, 0
                worker.node = value.node
                self._events.append(Joined(number, value))
            else:
                worker.busy = False
                self._events.append(Answered(call, value))
                if worker.leaves or getattr(value, "leaving", False):
                    self.end(number, worker.leaves or "was told to go")

    def _lost(self, number: int, reason: str, memory: bool = False, tell: bool = True) -> None:
        """A worker is gone: another takes its place, later and later when starts fail."""
        del self._workers[number]
        self._pending = {r: entry for r, entry in self._pending.items() if entry[1] != number}
        if tell:
            self._events.append(Left(number, reason, memory))
        self._start_again.append(time.monotonic() + min(2.0 * self._failed_starts, 60.0))

    def _tend(self) -> None:
        """Starts what is due, ends what hangs while loading, and now and then looks at the nodes."""
        now = time.monotonic()
        due = [t for t in self._start_again if t <= now]
        self._start_again = [t for t in self._start_again if t > now]
        for _ in due:
            self._start()
        for number, worker in list(self._workers.items()):
            if worker.deadline is not None and worker.deadline < now:
                self._failed_starts += 1
                self._events.append(NotStarted(TimeoutError(f"not ready after {self._spec.load_timeout:.0f} s")))
                ray.kill(worker.actor)
                self._lost(number, "", tell=False)
        if now >= self._looked + LOOK_AROUND:
            self._looked = now
            self._look_around()

    def _look_around(self) -> None:
        if self._spec.count is None:
            for _ in range(self._room() - self.wanted):
                self.wanted += 1
                self._start()
        drained = cluster_state.get_draining_nodes()
        for number, worker in list(self._workers.items()):
            if worker.node in drained and not worker.leaves:
                worker.leaves = "leaves its machine, which is being drained"
                if not worker.busy:
                    self.end(number, worker.leaves)

    def _room(self) -> int:
        """Workers that the nodes have room for, together."""
        places = 0
        for node in ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                fit = int(has.get("CPU", 0) / self._spec.threads)
                places += min(fit, int(has.get("GPU", 0) / self._spec.gpus)) if self._spec.gpus else fit
        return places


def cause(error: BaseException) -> BaseException:
    """What a worker raised, without Ray's wrapping."""
    while isinstance(error, ray.exceptions.RayError) and (error.__cause__ or getattr(error, "cause", None)):
        error = error.__cause__ or error.cause
    return error
