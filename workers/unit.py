"""The unit of work and its results: what travels between a job and its workers. Plain values and arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


class SampleRef(NamedTuple):
    """A sample by name."""

    task: str
    split: str
    index: int


@dataclass(frozen=True)
class PolicySpec:
    """A policy by name."""

    name: str
    """`full`, `namm`, `oracle`, or a module of `namm_core.policies`."""
    theta: np.ndarray | None = None
    """(N,) float32, for `namm`."""
    statistics: tuple[np.ndarray, np.ndarray, float] | None = None
    """Mean, variance and count of the spectrogram features, for `namm`."""
    budget: float | None = None
    """Kept fraction right after the prompt, for policies that take one."""


@dataclass(frozen=True)
class Unit:
    """What is evaluated in one batch: every policy on every sample. Several policies only if all are `namm`.

    Its shape is fixed by the job, so that a score never depends on which machine computed it.
    """

    policies: tuple[PolicySpec, ...]
    samples: tuple[SampleRef, ...]


@dataclass(frozen=True)
class SampleResult:
    """What one policy did on one sample."""

    task: str
    split: str
    index: int
    score: float
    """The task's metric, 0 to 1."""
    logprob: float
    """Mean log-probability of the reference answer's tokens, nats."""
    kept: float
    """Entries held / tokens seen right after the prompt, mean over layers and KV heads."""
    kept_layers: list[float]
    """The same for each layer."""
    tokens: int
    """Prompt tokens."""
    prediction: str
    """What the model answered."""


@dataclass(frozen=True)
class Failure:
    """Why a unit has no results."""

    kind: Literal["error", "memory"]
    """`memory`: the worker has too little of it, a larger one may do; `error`: anything else that was raised."""
    reason: str
    """One line."""


@dataclass(frozen=True)
class CallResult:
    """What a worker sends back for the units of one call."""

    outcomes: tuple[list[list[SampleResult]] | Failure | None, ...]
    """One a unit: results[policy][sample], or why there are none; None for a unit that was handed back undone."""
    seconds: float
    """How long it took."""
    hits: int = 0
    """Prompts found in Redis."""
    misses: int = 0
    """Prompts made anew."""
    redis_lost: bool = False
    """Whether the worker goes on without Redis."""
    leaving: bool = False
    """Whether the worker was told to go, and takes no more work."""


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself when it is ready."""

    pid: int
    node: str
    """Ray's id of its machine."""
    memory: int
    """Bytes that its model and caches may use: of its GPUs, or of its machine."""
