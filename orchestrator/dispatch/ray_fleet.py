"""The workers as Ray actors: replaced where they died, and more of them as the cluster grows.

Knows how a worker is started, called and ended, and nothing of what it is called for.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import ray
from ray._private.state import state as cluster_state

from orchestrator.fleet_events import Answered, Event, Joined, Left, NotStarted, Raised
from orchestrator.spec import WorkerSpec
from workers import actor
from workers.config import EvaluatorConfig
from workers.unit import CallResult

logger = logging.getLogger(__name__)

LOOK_AROUND = 5.0
"""Seconds between two looks at the cluster: nodes that came, nodes that are told to go."""


class _Awaited(NamedTuple):
    """What a reference that Ray has not settled yet stands for."""

    what: Literal["up", "load", "call"]
    worker: int
    call: int = -1
    """The call's number, if it is one."""


@dataclass
class _Worker:
    """An actor, from its start on."""

    actor: ray.actor.ActorHandle
    deadline: float | None = None
    """By when it must have loaded its model; None while it waits for room, and when it is ready."""
    node: str = ""
    busy: bool = False
    leaves: str = ""
    """Why it gets no more calls."""


class RayFleet:
    """Actors on the connected Ray cluster, a `Fleet`.

    config: what a worker is made of; spec: how many there are, and what each one needs; evaluator: `module:class` of
    what they host. Loading a model, or room for a worker, is waited for in `wait`, never here.

    Attributes:
        wanted: see `Fleet`; it grows with the cluster where the job gives no number.
    """

    def __init__(self, config: EvaluatorConfig, spec: WorkerSpec, evaluator: str = actor.EVALUATOR) -> None:
        self._config, self._spec, self._evaluator = config, spec, evaluator
        self._numbers = itertools.count()
        self._workers: dict[int, _Worker] = {}
        self._pending: dict[ray.ObjectRef, _Awaited] = {}
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
        self._pending[reference] = _Awaited("call", worker, call)
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
        self._pending[handle.up.remote()] = _Awaited("up", number)

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
                self._settle(reference, self._pending.pop(reference))

    def _settle(self, reference: ray.ObjectRef, awaited: _Awaited) -> None:
        """Turns what became of a reference into events."""
        what, number, call = awaited
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
                self._pending[worker.actor.load.remote()] = _Awaited("load", number)
            elif what == "load":
                worker.deadline, self._failed_starts = None, 0
                worker.node = value.node
                self._events.append(Joined(number, value))
            else:
                worker.busy = False
                self._events.append(Answered(call, value))
                if worker.leaves or (isinstance(value, CallResult) and value.leaving):
                    self.end(number, worker.leaves or "was told to go")

    def _lost(self, number: int, reason: str, memory: bool = False, tell: bool = True) -> None:
        """A worker is gone: another takes its place, later and later when starts fail."""
        del self._workers[number]
        self._pending = {r: entry for r, entry in self._pending.items() if entry.worker != number}
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
    """What a worker raised, without the errors that Ray wraps around it."""
    while isinstance(error, ray.exceptions.RayError):
        inner = error.__cause__ or (error.cause if isinstance(error, ray.exceptions.RayTaskError) else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error
