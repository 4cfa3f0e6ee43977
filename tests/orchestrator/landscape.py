"""An evaluator whose landscape is known: tasks that answer better the nearer theta lies to a target."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np

from orchestrator.evolution.loop import Outcome, evolve
from orchestrator.search.algorithms.cma_es import CMAESConfig
from orchestrator.spec import FitnessSpec, JobSpec, ValidationSpec
from workers.config import ModelConfig
from workers.unit import PolicySpec, SampleRef, SampleResult

STATISTICS = (np.zeros(17), np.ones(17), 1.0)
TARGET = np.linspace(-0.2, 0.2, 10)


class Noisy:
    """Scores fall with the distance from TARGET; each sample is harder or easier for everybody, and each answer is
    drawn anew, both from their names. Counts what it is asked, by policy and sample."""

    def __init__(self, noise: float = 0.3, coarse: bool = False, base: dict[str, float] | None = None) -> None:
        self.noise, self.coarse, self.base = noise, coarse, base or {}
        self.asked: list[tuple[int, list[SampleRef]]] = []
        self.policies: list[PolicySpec] = []
        self._levels: dict[bytes, float] = {}

    def __call__(self, policies, samples, progress=lambda done: None):
        self.asked.append((len(policies), list(samples)))
        self.policies += policies
        progress(len(policies) * len(samples))
        return [[self.one(policy, ref) for ref in samples] for policy in policies]

    def one(self, policy: PolicySpec, ref: SampleRef) -> SampleResult:
        base = self.base.get(ref.task, 0.5)
        if policy.theta is None:
            return SampleResult(*ref, base, math.log(base), 1.0, [1.0, 1.0], 100, "")
        named, theta = f"{ref}".encode(), policy.theta.tobytes()
        if theta not in self._levels:
            self._levels[theta] = 2.0 - 8.0 * float(np.linalg.norm(policy.theta - TARGET))
        level = self._levels[theta] + self.noise * (2 * drawn(named) + drawn(named + theta))
        value = float(level > 0) if self.coarse else 1 / (1 + math.exp(-level))
        score = 2 * base * value
        kept = 1 / (1 + math.exp(-20 * float(policy.theta[-1])))
        return SampleResult(*ref, score, math.log(max(score, 1e-9)), kept, [kept, kept], 100, "")


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


def run(spec: JobSpec, evaluate=None, past=(), **settings) -> tuple[Outcome, list[dict]]:
    """The outcome, and what was told anew, as a journal gives it back."""
    records = []

    def tell(record, settled):
        records.append(json.loads(json.dumps(record, allow_nan=False)))

    return evolve(spec, evaluate or Noisy(), STATISTICS, len(TARGET), tell, past=past, **settings), records


def timeless(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
