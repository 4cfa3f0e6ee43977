"""A unit of work on its way, and how work as a whole can fail. Knows neither workers nor the order of work."""

from __future__ import annotations

from dataclasses import dataclass

from workers.unit import Unit


class WorkFailed(RuntimeError):
    """The work cannot go on; one line says why. What is done is in the journal."""


@dataclass(eq=False)
class WorkItem:
    """A unit on its way, and what has gone wrong with it so far."""

    unit: Unit
    keys: tuple[str, ...]
    """`policy_key` of each of its policies."""
    held: int = 0
    """Calls under way that contain it."""
    alone: bool = False
    """Whether it is sent by itself, so that a failure can only be its own."""
    memory: int = 0
    """Bytes that were too few for it."""
    errors: int = 0
    """How often its evaluation raised an error."""
    late: int = 0
    """How often it was not done in time by a worker that had nothing else to do."""
    deaths: int = 0
    """How many workers died with it in hand."""
    starved: int = 0
    """How many of them had nothing else in hand and were killed for want of memory."""

    @property
    def names(self) -> str:
        """Its samples, for messages."""
        return ", ".join("/".join(map(str, ref)) for ref in self.unit.samples)

    def fits(self, memory: int) -> bool:
        """Whether a worker with so many bytes may get it; 0 is unknown."""
        return not self.memory >= memory > 0
