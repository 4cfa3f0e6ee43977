"""Your own tasks, each a file of JSON lines. Knows no model.

Files: `<task>.jsonl`, one record a line with `context`, `question`, `answers` (a list), `metric` (a name in
`workers.tasks.metrics`) and `max_new_tokens`; `all_classes` and `stop` (lists) and `language` are optional.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from workers.tasks import Sample, fields, metrics
from workers.tasks.benchmark import Benchmark, BenchmarkConfig, context_end, fill, texts
from workers.tasks.records import Records, locate

FIELDS = {
    "context": fields.text(blank=False),
    "question": fields.text(),
    "answers": fields.answers(),
    "metric": fields.text(),
    "max_new_tokens": fields.count(1),
    "all_classes": fields.texts(blank=False, required=False),
    "stop": fields.texts(blank=False, required=False),
    "language": fields.text(required=False),
}


@dataclass(frozen=True)
class JsonlConfig(BenchmarkConfig):
    """Which files."""

    template: str = "{context}\n\n{question}"
    """Prompt template of all tasks that `templates` does not name."""


class JsonlTasks(Benchmark):
    """The tasks of one folder (a `TaskSet`)."""

    separates = True

    config: JsonlConfig

    @property
    def known(self) -> tuple[str, ...]:
        """Every `*.jsonl` in the folder. Raises ValueError if there is none."""
        folder = Path(self.config.path)
        found = tuple(sorted(file.stem for file in folder.glob("*.jsonl"))) if folder.is_dir() else self.config.tasks
        if not found:
            raise ValueError(f"tasks.path: {self.config.path} holds no *.jsonl: put one file a task there")
        return found

    def read(self, task: str) -> Records:
        """The records of `<task>.jsonl`. Raises ValueError, one line, also for an unknown metric."""
        file = locate(self.config.path, self.config.revision, (f"{task}.jsonl",), f"task {task}")
        return Records(file, FIELDS, "context", check=partial(self.check, task))

    def check(self, task: str, record: dict[str, Any]) -> None:
        """Raises ValueError, one line, where the prompt is none, or the metric cannot score against the answers."""
        if self.filled(task, record) is None:
            fill(self.config.template, record, "tasks.template")
        metrics.check(record["metric"], texts(record["answers"]), texts(record.get("all_classes") or ()) or None)

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> Sample:
        """The sample that a record describes."""
        prompt = self.filled(task, record) or fill(self.config.template, record, "tasks.template")
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt=prompt,
            context=context_end(prompt, record["context"]),
            answers=texts(record["answers"]),
            relevant=(),
            metric=record["metric"],
            max_new_tokens=self.config.max_new_tokens.get(task, record["max_new_tokens"]),
            stop=self.config.stop.get(task, texts(record.get("stop") or ())),
            classes=texts(record.get("all_classes") or ()),
            language=record.get("language") or "en",
        )
