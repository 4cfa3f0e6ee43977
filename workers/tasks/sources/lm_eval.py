"""Any generation task of `lm_eval`, by its name there: its data, prompt, limits and grading. Knows no model.

`lm_eval` fetches the data, or generates it (RULER and its needles: `metadata` says how long, and for which tokenizer).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from workers.tasks import OWN_METRIC, Sample
from workers.tasks.benchmark import Benchmark, RecordsConfig
from workers.tasks.harness import HarnessTask


@dataclass(frozen=True)
class LmEvalConfig(RecordsConfig):
    """Which tasks of `lm_eval`."""

    path: str | None = None
    """Folder of task definitions (YAML), absolute or relative to `lm_eval/tasks`; None: all of `lm_eval`, which takes
    9 s to list."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Arguments of tasks that generate their data, such as `max_seq_lengths` and `tokenizer`."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Which of a task's numbers is its score, by task: a metric, or metric and filter, as in `lm_eval`'s tables
    ("exact_match,flexible-extract"); without one the first metric of the first filter that is better when higher."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.metrics) - set(self.tasks):
            raise ValueError(f"metrics names {', '.join(sorted(unknown))}, which tasks does not")


class Docs:
    """A task's documents, as a `RecordList`."""

    def __init__(self, task: HarnessTask) -> None:
        self._docs = task.docs
        self.digests = [hashlib.sha256(json.dumps(d, sort_keys=True, default=str).encode()).digest() for d in task.docs]
        self.groups = self.digests  # only the task knows which key holds the document
        self.fingerprint = hashlib.sha256(b"".join(self.digests)).hexdigest()

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._docs[index])


class LmEvalTasks(Benchmark):
    """Tasks of `lm_eval` (a `TaskSet` that grades its samples)."""

    config: LmEvalConfig

    def __init__(self, config: LmEvalConfig) -> None:
        """Raises ValueError if no task is named."""
        if not config.tasks:
            raise ValueError("name the tasks of lm_eval: `lm_eval ls tasks` lists them")
        self._tasks: dict[str, HarnessTask] = {}
        super().__init__(config)

    def read(self, task: str) -> Docs:
        """The documents that `lm_eval` evaluates the task on. Raises ValueError, one line, if none can be graded."""
        found = self._task(task)
        found.check()  # before any work is done
        return Docs(found)

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> Sample:
        """The sample of a document, with `lm_eval`'s prompt unless a template is configured."""
        asked = self._task(task)
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt=self.filled(task, record) or asked.prompt(record, self.place(task, split, index)),
            answers=asked.answers(record) or ("",),  # a question that has no answer: its task says what one is worth
            relevant=(),
            metric=OWN_METRIC,
            max_new_tokens=self.config.max_new_tokens.get(task, asked.max_new_tokens),
            stop=self.config.stop.get(task, asked.stop),
            delimiter=asked.delimiter,
            drops_breaks=False,
        )

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """`lm_eval`'s score of an answer, 0 to 1."""
        return self._task(task).grade(self.record(task, split, index), prediction)

    def _task(self, task: str) -> HarnessTask:
        if task not in self._tasks:
            self._tasks[task] = HarnessTask(
                task, self.config.path, metadata=self.config.metadata, metric=self.config.metrics.get(task)
            )
        return self._tasks[task]

    def _check_known(self, task: str) -> None:
        """Checks nothing: listing the tasks takes 9 s, and loading an unknown one is refused anyway."""
