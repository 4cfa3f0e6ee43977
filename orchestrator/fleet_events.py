"""What a fleet of workers tells: which workers came and went, and what became of the calls to them.

These are the events of `orchestrator.protocols.Fleet`. Knows neither how a worker is reached nor what it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workers.unit import WorkerInfo


@dataclass(frozen=True)
class Joined:
    """A worker is ready."""

    worker: int
    """Its number, which no other worker ever gets."""
    info: WorkerInfo


@dataclass(frozen=True)
class Answered:
    """A call returned a value."""

    call: int
    """The number that `Fleet.send` returned."""
    value: Any


@dataclass(frozen=True)
class Raised:
    """A call raised an error; the worker lives."""

    call: int
    """The number that `Fleet.send` returned."""
    error: BaseException


@dataclass(frozen=True)
class Left:
    """A worker is gone, and so is the call that it was working on."""

    worker: int
    """Its number."""
    reason: str
    """What it did, for a sentence that begins with `a worker`: `died`."""
    memory: bool = False
    """Whether its machine killed it for want of memory."""


@dataclass(frozen=True)
class NotStarted:
    """A worker could not load its model; the fleet tries again."""

    error: BaseException


Event = Joined | Answered | Raised | Left | NotStarted
"""Anything that a fleet tells."""
