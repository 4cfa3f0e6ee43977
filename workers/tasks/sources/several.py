"""Several task sets as one, each with its own source. Knows no task.

A task is called `<name of its set>/<task>`, as in `longbench/qasper`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from workers.tasks import Sample, TaskSet
from workers.tasks.loading import load_tasks


@dataclass(frozen=True)
class SeveralConfig:
    """Which task sets."""

    sets: dict[str, dict[str, Any]]
    """Name of a set: `source` and that source's options."""


class SeveralTasks:
    """The tasks of several sets (a `TaskSet` and a `Grader`)."""

    def __init__(self, config: SeveralConfig) -> None:
        """Raises ValueError as the sets do, naming the set."""
        if not config.sets:
            raise ValueError("sets must name at least one set of tasks")
        self._sets: dict[str, TaskSet] = {}
        for name, options in config.sets.items():
            try:
                self._sets[name] = load_tasks(options)
            except ValueError as error:
                raise ValueError(f"sets.{name}: {error}") from None

    @property
    def locates(self) -> bool:
        """Whether all sets' samples do."""
        return all(tasks.locates for tasks in self._sets.values())

    @property
    def tasks(self) -> tuple[str, ...]:
        """All sets' tasks."""
        return tuple(f"{name}/{task}" for name, tasks in self._sets.items() for task in tasks.tasks)

    def sample(self, task: str, split: str, index: int) -> Sample:
        """As the set that the task is of has it."""
        tasks, name = self._of(task)
        return replace(tasks.sample(name, split, index), task=task)

    def size(self, task: str, split: str) -> int | None:
        """As the set that the task is of has it."""
        tasks, name = self._of(task)
        return tasks.size(name, split)

    def answer_limit(self, task: str) -> int | None:
        """As the set that the task is of has it; None where it has none."""
        tasks, name = self._of(task)
        limit = getattr(tasks, "answer_limit", None)
        return None if limit is None else limit(name)

    def fingerprint(self, task: str) -> str:
        """As the set that the task is of has it."""
        tasks, name = self._of(task)
        return tasks.fingerprint(name)

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """As the set that the task is of does it."""
        tasks, name = self._of(task)
        return tasks.grade(name, split, index, prediction)

    def _of(self, task: str) -> tuple[TaskSet, str]:
        name, _, inner = task.partition("/")
        if name not in self._sets:
            raise ValueError(f"unknown task {task!r}; tasks of this set: {', '.join(self.tasks)}")
        return self._sets[name], inner
