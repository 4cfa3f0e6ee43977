"""What goes wrong in a run, when, and how it is done to it: a plan drawn from a seed, and the one who carries it out.

A moment is a generation and how far it has come. Knows nothing of what the run should end with; watches it through
the files of its run folder.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.system.surroundings import Surroundings, tail, title

WORKER, DRIVER, REDIS, MLFLOW, STOP = (
    "worker killed",
    "driver killed",
    "Redis killed",
    "MLflow killed",
    "worker stopped",
)
KINDS = (WORKER, DRIVER, REDIS, MLFLOW, STOP)
QUIET = 240.0
"""Seconds without a new result after which a run counts as stuck."""


class RunFailed(RuntimeError):
    """The run did not go on; the message says what was seen."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    kind: str
    """One of KINDS."""
    generation: int
    """The generation it falls in, from 1; the one after the last is the final table."""
    share: float
    """How far that generation has come, 0 to 1."""
    outage: float = 0.0
    """Seconds until what was killed is started again."""


@dataclass(frozen=True)
class Hit:
    """A fault that was carried out."""

    fault: Fault
    generation: int
    """The generation that it hit."""
    pid: int
    """The process that was killed or stopped."""
    doing: str
    """What that called itself."""


@dataclass(frozen=True)
class Pace:
    """How the undisturbed run went, by which moments are found."""

    results: tuple[int, ...]
    """Results of each generation, the final table last."""
    seconds: float
    """A third of the time of the shortest generation: what is meant for one must come before its end, and on a machine
    that was busy before, one may be shorter than any was."""


def draw(seed: int, generations: int, drivers: int, redis: int) -> list[Fault]:
    """A plan: a worker killed in each generation; driver and Redis killed so often; MLflow killed and, after the
    drivers, a worker stopped once. Redis is still away when the driver starts again after its last kill; MLflow dies
    early enough to be back for the end."""
    rng = random.Random(seed)
    plan = [Fault(WORKER, g, rng.uniform(0.05, 0.8)) for g in range(1, generations + 1)]
    # One for a generation, so that each driver comes to work before the next kill.
    for g in rng.sample(range(2, generations), drivers):
        plan.append(Fault(DRIVER, g, rng.uniform(0.05, 0.8), rng.uniform(0.5, 2)))
    last = max((fault for fault in plan if fault.kind == DRIVER), key=lambda fault: fault.generation)
    # After the drivers: the job's own time limit must get the stopped worker, not its driver's end.
    plan.append(Fault(STOP, rng.randint(last.generation + 1, generations), rng.uniform(0.05, 0.4)))
    plan.append(Fault(REDIS, last.generation, last.share - 0.04, 15.0))
    for g in rng.sample([g for g in range(1, generations + 1) if abs(g - last.generation) > 1], redis - 1):
        plan.append(Fault(REDIS, g, rng.uniform(0.05, 0.9), rng.uniform(2, 5)))
    plan.append(Fault(MLFLOW, rng.randint(1, generations // 2), rng.uniform(0.05, 0.9), rng.uniform(1, 5)))
    return sorted(plan, key=lambda fault: (fault.generation, fault.share))


class Watch:
    """Looks at a run folder's journal from outside: generations told, results."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told, self.results = folder, 0, 0
        self.ends: list[tuple[float, int]] = []
        """When each generation was first seen as told, and the results at that time."""
        self.grew = time.monotonic()
        self._read = 0

    def look(self) -> None:
        """Reads what is new. Whole lines stay as they are; a torn one, which a resumed job cuts off, is not one."""
        journal, now = self.folder / "journal.jsonl", time.monotonic()
        if not journal.exists():
            return
        with journal.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        for line in text.splitlines():
            if b'"policy"' in line[:32]:
                self.results += 1
            elif b'"told"' in line[:32]:
                self.told += 1
                self.ends.append((now, self.results))
        self._read += len(text)
        if text:
            self.grew = now


class Disturber:
    """Runs a job to its end while a plan is carried out. No plan: nothing disturbs it.

    say: gets one line for each thing that happens.
    """

    def __init__(
        self,
        world: Surroundings,
        folder: Path,
        name: str,
        plan: list[Fault],
        seed: int,
        pace: Pace | None,
        say: Callable[[str], None],
    ) -> None:
        self.world, self.folder, self.plan, self.pace, self.say = world, folder, list(plan), pace, say
        self.name, self.watch, self.rng = name, Watch(folder / "runs" / name), random.Random(seed + 1)
        self.hits: list[Hit] = []
        self.refused: list[tuple[str, list[str]]] = []
        """Last words of drivers that ended by themselves when they were started again, and which servers were away."""
        self.stopped: psutil.Process | None = None
        self.stopped_for: float | None = None
        """Seconds from the stop until somebody had killed the stopped worker."""
        self._stopped_at = 0.0
        self._later: list[tuple[float, str, Callable[[], None]]] = []
        self._drivers, self._driver = 0, None
        self._begun, self._base, self._first_result = 0.0, 0, 0.0

    @property
    def log(self) -> Path:
        """What the present driver prints."""
        return self.folder / f"driver-{self._drivers}.log"

    def run(self) -> tuple[Pace, float]:
        """Runs the job; returns its pace, and its seconds from the first start to the last exit."""
        started = time.monotonic()
        self._start_driver("job.yaml")
        while not self._finished():
            self._look()
            self._restart_what_is_due()
            for fault in list(self.plan):
                if self._due(fault) and self._inject(fault):
                    self.plan.remove(fault)
            if time.monotonic() - self.watch.grew > QUIET:
                raise RunFailed(f"no new result for {QUIET:.0f} s; the driver's last words:\n{tail(self.log)}")
            time.sleep(0.1)
        self._look()
        ended = time.monotonic()
        while self._later or (self._waits_for_the_stopped() and time.monotonic() < ended + 60):
            self._look()
            self._restart_what_is_due()
            time.sleep(0.1)
        marks = [(self._first_result, 0), *self.watch.ends, (ended, self.watch.results)]
        pairs = list(zip(marks, marks[1:], strict=False))
        shortest = max(min(b[0] - a[0] for a, b in pairs[:-1]), 0.5)
        return Pace(tuple(b[1] - a[1] for a, b in pairs), shortest / 3), ended - started

    def _look(self) -> None:
        before, had = self.watch.told, self.watch.results
        self.watch.look()
        now = time.monotonic()
        if not self._begun and self._at_work():
            self._begun = now  # results come in parcels: a whole generation may be told in one
        if self.watch.results and not had:
            self._first_result = now
        if self.watch.results > had and not self._begun:
            self._begun = now
        if self.watch.told > before:
            self._begun, self._base = now, self.watch.ends[-1][1]
            self.say(f"generation {self.watch.told} told, {self.watch.results} results")
        if self._waits_for_the_stopped() and not title(self.stopped):
            self.stopped_for = now - self._stopped_at
            self.say(f"stopped worker {self.stopped.pid} is dead after {self.stopped_for:.1f} s")

    def _at_work(self) -> bool:
        """Whether any worker of a running driver evaluates."""
        if self._driver.poll() is not None:
            return False
        return any(title(worker).endswith(".evaluate") for worker in self.world.workers() if worker != self.stopped)

    def _waits_for_the_stopped(self) -> bool:
        return self.stopped is not None and self.stopped_for is None

    def _due(self, fault: Fault) -> bool:
        """Whether its moment has come: by results or, since these come in parcels, by time."""
        if not self._begun:
            return False
        at = self.watch.told + 1
        if at != fault.generation:
            return at > fault.generation
        by_results = (self.watch.results - self._base) / max(self.pace.results[at - 1], 1)
        by_time = (time.monotonic() - self._begun) / self.pace.seconds
        return max(by_results, by_time) >= fault.share

    def _inject(self, fault: Fault) -> bool:
        """Carries a fault out; False where it has to wait (a worker that is not there yet)."""
        if fault.kind in (WORKER, STOP):
            return self._hit_worker(fault)
        if fault.kind == DRIVER:
            self._driver.kill()
            self._driver.wait()
            self._hit(fault, self._driver.pid, "driver")
            self._begun = 0.0  # until the next one is at work
            self._at(fault.outage, "driver", lambda: self._start_driver("--resume", self.name))
        else:
            service = self.world.redis if fault.kind == REDIS else self.world.mlflow
            if service.process.poll() is not None:
                return False
            pids = service.kill()
            self._hit(fault, pids[-1], f"{service.name}, {len(pids)} process(es)")
            self._at(fault.outage, service.name, service.start)
        return True

    def _hit_worker(self, fault: Fault) -> bool:
        there = [(worker, title(worker)) for worker in self.world.workers() if worker != self.stopped]
        if fault.kind == STOP:  # one that loads has a limit of its own (workers.load_timeout)
            there = [(worker, doing) for worker, doing in there if doing.endswith(".evaluate")]
        if not there:
            return False
        worker, doing = self.rng.choice(there)
        try:
            if fault.kind == STOP:
                worker.suspend()  # SIGSTOP; nobody lets it go on
                self.stopped, self._stopped_at = worker, time.monotonic()
            else:
                worker.kill()
        except psutil.NoSuchProcess:
            return False
        self._hit(fault, worker.pid, doing)
        return True

    def _hit(self, fault: Fault, pid: int, doing: str) -> None:
        self._look()
        hit = Hit(fault, self.watch.told + 1, pid, doing)
        self.hits.append(hit)
        self.say(f"generation {hit.generation}: {fault.kind}: {pid} ({doing}), {self.watch.results} results")

    def _at(self, seconds: float, what: str, call: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + seconds, what, call))

    def _restart_what_is_due(self) -> None:
        for item in [item for item in self._later if item[0] <= time.monotonic()]:
            self._later.remove(item)
            self.say(f"{item[1]} is started again")
            item[2]()

    def _start_driver(self, *arguments: str) -> None:
        self._drivers += 1
        self._driver = self.world.driver(self.folder, self.log, *arguments)
        self.watch.grew = time.monotonic()

    def _finished(self) -> bool:
        """Whether the driver has ended well. One that ends by itself while a server is away is started again."""
        status = self._driver.poll()
        if status is None or any(what == "driver" for _, what, _ in self._later):
            return False
        if status == 0:
            return True
        away = [
            s.name for s in (self.world.redis, self.world.mlflow) if s.process.poll() is not None or not s.answers()
        ]
        if not away or not self.hits:
            raise RunFailed(f"the driver ended with {status}:\n{tail(self.log)}")
        self.refused.append((tail(self.log, 1), away))
        self._begun = 0.0
        self.say(f"the driver ended with {status} while {' and '.join(away)} was away: {tail(self.log, 1)}")
        self._at(2.0, "driver", lambda: self._start_driver("--resume", self.name))
        return False
