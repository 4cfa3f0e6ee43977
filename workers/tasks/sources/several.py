"""Several task sets as one, each with its own source. Knows no task.

A task is called `<name of its set>/<task>`, as in `longbench/qasper`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from workers.protocols import TaskSet
from workers.tasks import Sample
from workers.tasks.loading import load_tasks


@dataclass(frozen=True)
class SeveralConfig:
    """Which task sets."""

    sets: dict[str, dict[str, Any]]
    """Name of a set: `source` and that source's options."""


class SeveralTasks:
    """The tasks of several sets (a `TaskSet`), each as its own set has it."""

    def __init__(self, config: SeveralConfig) -> None:
        """Raises ValueError as the sets do, naming the set."""
        if not config.sets:
            raise ValueError("sets must name at least one set of tasks")
        self._sets: dict[str, TaskSet[Any]] = {}
        for name, options in config.sets.items():
            try:
                self._sets[name] = load_tasks(options)
            except ValueError as error:
                raise ValueError(f"sets.{name}: {error}") from None

    @property
    def locates(self) -> bool:
        """Whether the samples of all sets say which places answer them."""
        return all(tasks.locates for tasks in self._sets.values())

    @property
    def separates(self) -> bool:
        """Whether the samples of all sets say where their question begins."""
        return all(tasks.separates for tasks in self._sets.values())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of all sets."""
        return tuple(f"{name}/{task}" for name, tasks in self._sets.items() for task in tasks.tasks)

    def sample(self, task: str, split: str, index: int) -> Sample:
        """The set's own sample under the longer name. Raises ValueError for an unknown set, or as the set does."""
        tasks, name = self._of(task)
        return replace(tasks.sample(name, split, index), task=task)

    def size(self, task: str, split: str) -> int | None:
        """Number of different samples in a split."""
        tasks, name = self._of(task)
        return tasks.size(name, split)

    def answer_limit(self, task: str) -> int | None:
        """Most tokens of an answer, if its set knows it."""
        tasks, name = self._of(task)
        return tasks.answer_limit(name)

    def fingerprint(self, task: str) -> str:
        """Names the data of a task."""
        tasks, name = self._of(task)
        return tasks.fingerprint(name)

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """The set's own score of an answer, 0 to 1."""
        tasks, name = self._of(task)
        return tasks.grade(name, split, index, prediction)

    def _of(self, task: str) -> tuple[TaskSet[Any], str]:
        """The set of a task, and the task's name there."""
        name, _, inner = task.partition("/")
        if name not in self._sets:
            raise ValueError(f"unknown task {task!r}; tasks of this set: {', '.join(self.tasks)}")
        return self._sets[name], inner
