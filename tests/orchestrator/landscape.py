"""An evaluator whose landscape is known: tasks that answer better the nearer theta lies to a target."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np

from orchestrator.evolution.loop import Evolved, Problem, evolve
from orchestrator.evolution.samples import Size, endless
from orchestrator.protocols import Evaluate, Recorder
from orchestrator.search.algorithms.cma_es import CMAESConfig
from orchestrator.spec import FitnessSpec, JobSpec, ValidationSpec
from workers.config import ModelConfig
from workers.unit import PolicySpec, SampleRef, SampleResult

STATISTICS = (np.zeros(17), np.ones(17), 1.0)
TARGET = np.linspace(-0.2, 0.2, 10)


class Landscape:
    """Scores fall with the distance from TARGET; a memory keeps more the larger theta's last number is. Counts what it
    is asked, by policy and sample. broken: a sample that cannot be evaluated; base: the full cache's score by task, 0.5
    where none is given."""

    def __init__(self, broken: SampleRef | None = None, base: dict[str, float] | None = None) -> None:
        self.broken, self.base = broken, base or {}
        self.asked: list[tuple[int, list[SampleRef]]] = []
        self.policies: list[PolicySpec] = []

    def __call__(self, policies, samples, progress=lambda done: None):
        self.asked.append((len(policies), list(samples)))
        self.policies += policies
        progress(len(policies) * len(samples))
        return [[self.one(policy, ref) for ref in samples] for policy in policies]

    def one(self, policy: PolicySpec, ref: SampleRef) -> SampleResult | None:
        if ref == self.broken:
            return None
        base = self.base.get(ref.task, 0.5)
        if policy.theta is None:
            score, kept = base, policy.budget or 1.0
        else:
            score, kept = self.score(policy.theta, ref, base), 1 / (1 + math.exp(-20 * float(policy.theta[-1])))
        return SampleResult(*ref, score, math.log(max(score, 1e-9)), kept, [kept, kept], 100, "")

    def score(self, theta: np.ndarray, ref: SampleRef, base: float) -> float:
        return math.exp(-float(np.linalg.norm(theta - TARGET)))


class Noisy(Landscape):
    """Each sample is harder or easier for everybody, and each answer is drawn anew, both from their names."""

    def __init__(self, noise: float = 0.3, coarse: bool = False, **settings) -> None:
        super().__init__(**settings)
        self.noise, self.coarse = noise, coarse
        self._levels: dict[bytes, float] = {}

    def score(self, theta: np.ndarray, ref: SampleRef, base: float) -> float:
        named, bits = f"{ref}".encode(), theta.tobytes()
        if bits not in self._levels:
            self._levels[bits] = 2.0 - 8.0 * float(np.linalg.norm(theta - TARGET))
        level = self._levels[bits] + self.noise * (2 * drawn(named) + drawn(named + bits))
        value = float(level > 0) if self.coarse else 1 / (1 + math.exp(-level))
        return 2 * base * value


def drawn(name: bytes) -> float:
    """A random number that belongs to a name: mean 0, variance 1, uniform."""
    word = int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "big")
    return (word / 2**32 - 0.5) * math.sqrt(12)


def job(**changes) -> JobSpec:
    settings = {
        "name": "test",
        "model": ModelConfig("somewhere"),
        "tasks": {"source": "recall"},
        "search": CMAESConfig(population=8, sigma0=0.05),
        "fitness": FitnessSpec(samples=2),
        "validation": ValidationSpec(every=2, samples=3),
    }
    if "stages" not in changes:
        settings |= {"train": ("residence", "topic"), "generations": 6}
    return JobSpec(**{**settings, **changes})


class Kept(Recorder):
    """Keeps what was told, as a journal gives it back, and what stages ended with."""

    def __init__(self) -> None:
        self.records: list[dict] = []
        self.settled: list[list[SampleRef]] = []
        self.ends: list[tuple[dict, PolicySpec, PolicySpec]] = []
        self.starts: list[dict] = []

    def begun(self, start):
        self.starts.append(start)

    def told(self, record, settled):
        self.records.append(json.loads(json.dumps(record, allow_nan=False)))
        self.settled.append(list(settled))

    def stage_over(self, entry, best, mean):
        self.ends.append((entry, best, mean))


def problem(evaluate: Evaluate, size: Size = endless, **more) -> Problem:
    return Problem(evaluate, STATISTICS, len(TARGET), size, **more)


def run(
    spec: JobSpec, evaluate=None, past=(), ends: list | None = None, begun: list | None = None, **more
) -> tuple[Evolved, list[dict]]:
    """What an evolution comes to, and what was told anew; `ends` takes what its stages ended with, `begun` what it
    started from; more: of its `Problem`."""
    kept = Kept()
    evolved = evolve(spec, problem(evaluate or Noisy(), **more), kept, past)
    if ends is not None:
        ends += kept.ends
    if begun is not None:
        begun += kept.starts
    return evolved, kept.records


def timeless(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
