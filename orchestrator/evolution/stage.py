"""A stage under way: its search and the restarts of it, how far they are, and what is over after a generation.

Knows no samples, evaluation or files; what happens in a generation is in `loop`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.evolution.look import LOOKED_AT
from orchestrator.evolution.start import LATER
from orchestrator.protocols import Search
from orchestrator.search import lookup
from orchestrator.search.config import SearchConfig
from orchestrator.search.part import PartSearch
from orchestrator.search.stage_rules import End, search_of, spent, stalled
from orchestrator.spec import JobSpec


@dataclass
class Consumed:
    """What the job's search has taken so far, of what `stop` bounds."""

    evaluations: int = 0
    """Evaluations that were asked for."""
    seconds: float = 0.0
    timed: bool = True
    """Whether time may end the job: not where it is known that a generation follows."""


class StageRun:
    """Stage `number` (from 0) of a job, from the vector `start` with step size `sigma`; look: evaluations of one look
    at its validation samples; first: generations told before it; part: (N,) bool, the numbers that are searched, None
    for all."""

    def __init__(
        self,
        job: JobSpec,
        number: int,
        start: np.ndarray,
        sigma: float,
        look: int,
        first: int,
        part: np.ndarray | None = None,
    ) -> None:
        self.job, self.plan, self.number, self.look = job, job.plan[number], number, look
        self.last = number + 1 == len(job.plan)
        self.start, self._part = start, part
        self.end: End | None = None
        """What is over; None: nothing is, or a restart follows."""
        self.next_mean, self.next_sigma = start, sigma
        """Where the next stage starts: the mean that the search ended with which found this stage's best."""
        self.best = -np.inf
        """Best validation fitness."""
        self.told = 0
        """Generations told, over all of the stage's searches."""
        self.entry: dict[str, Any] = {
            "name": self.plan.name,
            "train": list(self.plan.train),
            "first": first + 1,
            "start": theta_digest(start),
            "sigma_start": sigma,
            "restarts": [],
        }
        if part is not None:
            self.entry |= {"part": self.plan.part, "searched": int(part.sum())}
        """What a run's result says of the stage, plain JSON values."""
        self._restart, self._best_restart = 0, 0
        self._own_best: float = -np.inf
        self._begin(sigma)

    def labels(self) -> dict[str, Any]:
        """What a generation's record says of where it belongs."""
        labels = {"stage": self.plan.name, "stage_number": self.number + 1, "restart": self._restart}
        labels["population"] = self.search.population
        return labels if self._means else labels | {"start": theta_digest(self.start)}

    def tell(self, fitness: np.ndarray) -> None:
        """Tells the search the fitness (population,) of its candidates, and counts."""
        self.search.tell(fitness)
        self.told += 1
        self._means.append(self.search.mean)

    def averaged(self) -> np.ndarray:
        """(N,): average of the later half of the search's means, which is less noisy than any of them."""
        return np.mean(self._means[len(self._means) // 2 :], axis=0)

    @property
    def look_due(self) -> bool:
        """Whether the mean is looked at after this generation."""
        return self._periodic or self.end is not None

    def looked(self, fitness: float) -> bool:
        """Takes note of a look's best fitness; returns whether it is the stage's best so far."""
        if fitness > self._own_best:
            self._own_best, self._own_best_at = fitness, len(self._means)
        self._since_better = len(self._means) - self._own_best_at
        if fitness > self.best:
            self.best, self._best_restart = fitness, self._restart
            return True
        return False

    def judge(self, consumed: Consumed, looked: bool) -> None:
        """Decides what is over: before a look at the mean, and again after it, since it may change that."""
        done = self.told == self.plan.generations
        pending = self.look if not looked and (self._periodic or done) else 0
        self.end = self._over(consumed, pending, done)

    def close(self, generation: int) -> None:
        """Ends what is over, or begins a restart; generation: the job's, from 1."""
        if self.end is None:
            return
        if self._restart == self._best_restart:
            self.next_mean, self.next_sigma = self.search.mean, self.search.sigma
        if self.end.of == "search":
            self._restart += 1
            self._begin(self.plan.sigma0)
            population = self.search.population
            self.entry["restarts"] += [{"generation": generation, "reason": self.end.reason, "population": population}]
            self.end = None
        else:
            self.entry |= {
                "generations": self.told,
                "ended": self.end.of,
                "reason": self.end.reason,
                "end": theta_digest(self.next_mean),
                "sigma_end": self.next_sigma,
                "validation_fitness": self.best if np.isfinite(self.best) else None,
            }

    def _begin(self, sigma: float) -> None:
        config = replace(self._config(self._restart), sigma0=sigma)
        self.search: Search
        if self._part is None:
            self.search = lookup.started(config, self.start)
        else:
            self.search = PartSearch(config, self.start, self._part)
        self._means: list[np.ndarray] = []
        self._own_best, self._own_best_at, self._since_better = -np.inf, 0, 0

    def _config(self, restart: int) -> SearchConfig:
        return search_of(self.job.search, self.job.seed, self.number, self.plan, restart, self.job.restarts.factor)

    @property
    def _periodic(self) -> bool:
        return self.told % self.job.validation.every == 0

    def _over(self, consumed: Consumed, pending: int, done: bool) -> End | None:
        if done and self.last:
            return End("job", _all_done(self.told))
        if over := self._spent(consumed, pending, self.number + done, 0 if done else self._restart):
            return End("job", over)
        if done:
            return End("stage", _all_done(self.told))
        reason = stalled(self.job.stop, self.search.sigma, self._since_better)
        if reason is None:
            return None
        anew = self._restart < self.job.restarts.count
        if self.last and not anew:
            return End("job", reason)
        over = self._spent(consumed, pending, self.number + (not anew), self._restart + 1 if anew else 0)
        return End("job", over) if over else End("search" if anew else "stage", reason)

    def _spent(self, consumed: Consumed, pending: int, number: int, restart: int) -> str | None:
        """Why there is no room left for a generation of stage `number` and a look at its mean; None: there is."""
        stage = self.job.plan[number]
        population = search_of(self.job.search, 0, number, stage, restart, self.job.restarts.factor).population
        a_task = (population + 2) * stage.samples + LOOKED_AT * self.job.validation.samples
        if self.job.start.rule is not None and number > self.number:
            a_task += LATER * self.job.validation.samples
        another = len(stage.train) * a_task
        return spent(
            self.job.stop, consumed.evaluations + pending + another, consumed.seconds if consumed.timed else None
        )


def theta_digest(theta: np.ndarray) -> str:
    """Names a vector, as float32."""
    return hashlib.sha256(np.asarray(theta, np.float32).tobytes()).hexdigest()[:16]


def _all_done(generations: int) -> str:
    return f"its {generations} generation{'s are' if generations > 1 else ' is'} done"
