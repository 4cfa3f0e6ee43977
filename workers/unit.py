"""The unit of work and its results: what travels between a job and its workers. Plain values and arrays only.

A `Unit` goes out; the results of the units of one call come back as a `CallResult`. Knows neither models nor searches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

ProtocolName = Literal["streaming", "context"]
"""When a memory forgets: `streaming`, every update interval while it reads; or `context`, once, when the context has
been read and before the question is."""


class SampleRef(NamedTuple):
    """The name of a sample."""

    task: str
    """Its task, as the task set calls it."""
    split: str
    """One of `workers.tasks.SPLITS`."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    """Its place in the split, from 0."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy by name, with everything that its scores depend on."""

    name: str
    """`full`, `namm`, `oracle`, or a module of `namm_core.policies`."""
    theta: np.ndarray | None = None
    """(N,) float32, the parameters of `namm`."""
    statistics: tuple[np.ndarray, np.ndarray, float] | None = None
    """Mean, variance and count of the spectrogram features, for `namm`; None leaves features as they are."""
    budget: float | None = None
    """Fraction of the prompt that is held right after it, for policies that take a budget."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the policy's own, by name, as plain JSON values: `{"window": 64}`."""
    protocol: ProtocolName = "streaming"
    """When it forgets."""

    def shares_batch(self, other: PolicySpec) -> bool:
        """Whether one unit may hold both: both are `namm`, and differ in `theta` alone.

        Statistics count as equal only if they are the same bits: all rows of a batch are scored with one set of them.
        """
        return self.name == other.name == "namm" and self._apart_from_theta() == other._apart_from_theta()

    def _apart_from_theta(self) -> tuple[object, ...]:
        bits = None
        if self.statistics is not None:
            mean, var, count = self.statistics
            bits = [(a.dtype.str, a.shape, a.tobytes()) for a in map(np.asarray, (mean, var, float(count)))]
        return self.name, bits, self.budget, json.dumps(dict(self.options), sort_keys=True), self.protocol


@dataclass(frozen=True)
class Unit:
    """What is evaluated in one batch: every policy on every sample.

    Several policies only if they share a batch (`PolicySpec.shares_batch`). A unit's shape is fixed by the job, so
    that a score never depends on which machine computed it.
    """

    policies: tuple[PolicySpec, ...]
    samples: tuple[SampleRef, ...]


@dataclass(frozen=True)
class SampleResult:
    """How one policy did on one sample."""

    task: str
    split: str
    index: int
    score: float
    """The task's metric, 0 to 1."""
    logprob: float
    """Mean log-probability of the reference answer's tokens, in nats."""
    kept: float
    """Entries held / tokens seen right after the prompt, mean over layers and KV heads."""
    kept_layers: list[float]
    """The same for each layer."""
    tokens: int
    """Length of the prompt in tokens."""
    prediction: str
    """What the model answered."""


@dataclass(frozen=True)
class Failure:
    """Why a unit has no results."""

    kind: Literal["error", "memory"]
    """`memory`: the worker has too little memory, a larger one may succeed; `error`: any other exception."""
    reason: str
    """The exception in one line."""


@dataclass(frozen=True)
class CallResult:
    """What a worker sends back for the units of one call."""

    outcomes: tuple[list[list[SampleResult]] | Failure | None, ...]
    """For each unit: results[policy][sample], or why there are none; None if the unit was handed back undone."""
    seconds: float
    """Duration of the call."""
    hits: int = 0
    """Arrays (prompts, base scores) found in Redis or in the worker's own store."""
    misses: int = 0
    """Arrays that had to be made."""
    redis_lost: bool = False
    """Whether the worker is going on without Redis."""
    leaving: bool = False
    """Whether the worker was told to leave, and takes no more work."""


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker reports about itself once it is ready."""

    pid: int
    """Process id on its machine."""
    node: str
    """Ray's id of its machine."""
    memory: int
    """Bytes that its model and caches may use: those of its GPUs, or of its machine."""
