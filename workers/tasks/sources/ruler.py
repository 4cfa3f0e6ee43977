"""RULER, needles in haystacks included: files that RULER's own generator wrote. Knows no model.

Files: `<task>/validation.jsonl` (or `<task>.jsonl`), one record a line with `input`, the whole prompt, and
`outputs`; if a record has an `answer_prefix` too, the prompt ends in it. Source `lm_eval` generates such tasks without
files.

Source: NVIDIA/RULER (arXiv 2404.06654), `scripts/data/synthetic/constants.py` and `scripts/eval/synthetic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from workers.tasks import Sample, fields
from workers.tasks.benchmark import Benchmark, BenchmarkConfig, texts
from workers.tasks.records import Records, locate

NEEDLES = ("single_1", "single_2", "single_3", "multikey_1", "multikey_2", "multikey_3", "multivalue", "multiquery")
LIMITS = {f"niah_{name}": 128 for name in NEEDLES} | {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
FIELDS = {
    "input": fields.text(blank=False),
    "outputs": fields.answers(),
    "answer_prefix": fields.text(required=False),
}


@dataclass(frozen=True)
class RulerConfig(BenchmarkConfig):
    """Which RULER tasks."""

    path: str = "data/ruler"
    """Folder that holds `<task>/validation.jsonl`, all of one length, or a data set on the Hub."""


class RulerTasks(Benchmark):
    """RULER's tasks (a `TaskSet`)."""

    known = tuple(LIMITS)
    config: RulerConfig

    def answer_limit(self, task: str) -> int | None:
        """Most tokens of an answer: the configuration's, or RULER's."""
        return self.config.max_new_tokens.get(task, LIMITS.get(task))

    def read(self, task: str) -> Records:
        """The records of `<task>/validation.jsonl` or `<task>.jsonl`."""
        names = (f"{task}/validation.jsonl", f"{task}.jsonl")
        file = locate(self.config.path, self.config.revision, names, f"RULER's {task}")
        return Records(file, FIELDS, "input", check=partial(self.check, task))

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> Sample:
        """The sample of a record, whose prompt is complete as it is."""
        prompt, prefix = record["input"], record.get("answer_prefix") or ""
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt=self.filled(task, record) or (prompt if prompt.endswith(prefix) else prompt + prefix),
            answers=texts(record["outputs"]),
            relevant=(),
            metric="string_match_part" if task.startswith("qa_") else "string_match_all",
            max_new_tokens=self.config.max_new_tokens.get(task, LIMITS[task]),
            stop=self.config.stop.get(task, ()),
        )
