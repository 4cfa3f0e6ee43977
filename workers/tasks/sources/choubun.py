"""ChouBun: four tasks on long Japanese texts. Knows no model.

Files: `<task>/test-*.parquet` as on the Hub, or `<task>.jsonl`; records have `input`, `context` and `answers`.
Prompts and limits are read from the benchmark's own `dataset2prompt.json` and `dataset2maxlen.json`, which are part of
its code repository (`ChouBun/config`), not of the data set.

Source: SakanaAI/ChouBun (Cetin et al., arXiv 2410.13166, appendix).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from workers.tasks import Sample, fields
from workers.tasks.benchmark import Benchmark, BenchmarkConfig, fill, read_json, texts
from workers.tasks.records import Records, locate

METRIC = {
    "wiki_qa": "qa_f1_ja_score",
    "edinet_qa": "qa_f1_ja_score",
    "corp_sec_qa": "qa_f1_ja_score",
    "corp_sec_sum": "rouge_ja_score",
}
FIELDS = {"input": fields.text(), "context": fields.text(blank=False), "answers": fields.answers()}
PROMPTS, LIMITS = "dataset2prompt.json", "dataset2maxlen.json"
KINDS = {PROMPTS: fields.text(blank=False), LIMITS: fields.count(1)}


@dataclass(frozen=True)
class ChouBunConfig(BenchmarkConfig):
    """Which ChouBun tasks."""

    path: str = "SakanaAI/ChouBun"
    """Folder that holds `<task>/test-00000-of-00001.parquet` or `<task>.jsonl`, or a data set on the Hub."""
    prompts: str | None = None
    """Folder with `dataset2prompt.json` and `dataset2maxlen.json`; None: `path` or its subfolder `config`."""


class ChouBunTasks(Benchmark):
    """ChouBun's tasks (a `TaskSet`)."""

    known = tuple(METRIC)
    config: ChouBunConfig

    def __init__(self, config: ChouBunConfig) -> None:
        self._files: dict[str, tuple[Path, dict[str, Any]]] = {}
        super().__init__(config)

    def read(self, task: str) -> Records:
        """The records of `<task>.jsonl` or the task's parquet file."""
        names = (f"{task}/test-00000-of-00001.parquet", f"{task}.jsonl", f"data/{task}.jsonl")
        what = f"ChouBun's {task}"
        file = locate(self.config.path, self.config.revision, names, what)
        return Records(file, FIELDS, "context", check=partial(self.check, task))

    def _rendered(self, task: str, record: dict[str, Any]) -> str:
        return self.filled(task, record) or fill(self._of(task, PROMPTS), record, f"{PROMPTS}, {task}")

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> Sample:
        """The sample of a record, its prompt from the prompt files unless a template is configured."""
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt=self._rendered(task, record),
            answers=texts(record["answers"]),
            relevant=(),
            metric=METRIC[task],
            max_new_tokens=self.config.max_new_tokens.get(task) or self._of(task, LIMITS),
            stop=self.config.stop.get(task, ()),
            delimiter="",
            language="ja",
        )

    def fingerprint(self, task: str) -> str:
        """Digest of the records, and what the prompt files say about the task."""
        parts = [super().fingerprint(task)]
        if task not in self.config.templates:
            parts.append(self._of(task, PROMPTS))
            self._rendered(task, self.records(task)[0])  # raises ValueError for a prompt that cannot be filled
        if task not in self.config.max_new_tokens:
            parts.append(str(self._of(task, LIMITS)))
        return "\n".join(parts)

    def _of(self, task: str, name: str) -> Any:
        """What a prompt file says about a task. Raises ValueError if that is missing or of another type."""
        if name not in self._files:
            folder, key = self.config.prompts or self.config.path, "tasks.prompts"
            file = locate(folder, self.config.revision, (f"config/{name}", name), "ChouBun's prompt files", key)
            self._files[name] = (file, read_json(file, "one entry a task"))
        file, entries = self._files[name]
        try:
            fields.check(entries, {task: KINDS[name]})
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        return entries[task]
