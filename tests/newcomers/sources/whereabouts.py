"""The recall tasks of one kind, with an option that they do not have: a task source from outside the package."""

from __future__ import annotations

from dataclasses import dataclass

from workers.tasks.sources.recall import RecallConfig, RecallTasks


@dataclass(frozen=True)
class WhereaboutsConfig:
    """Options of the source."""

    people: int = 6
    """Persons with a city."""
    tokens: int = 264
    """Length of a prompt."""


class WhereaboutsTasks(RecallTasks):
    """Where is somebody?"""

    def __init__(self, config: WhereaboutsConfig) -> None:
        """Takes the kind `residence` alone."""
        super().__init__(RecallConfig(tokens=config.tokens, kinds=("residence",), facts=config.people))
