"""InfiniteBench: 11 tasks of 100k tokens and more. Knows no model.

Files: `<task>.jsonl`, one record a line with `id`, `context`, `input`, `answer` and `options`, as the data set has
them. Prompts, limits and grading are `lm_eval`'s, which leaves out `math_calc`.

Source: OpenBMB/InfiniteBench (arXiv 2402.13718).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workers.tasks import OWN_METRIC, Sample
from workers.tasks.benchmark import Benchmark, BenchmarkConfig, texts
from workers.tasks.harness import HarnessTask
from workers.tasks.records import Records, locate

FIELDS = {
    "context": (str,),
    "input": (str,),
    "answer": (list, str, int, float),
    "options": (list, str),
}


@dataclass(frozen=True)
class InfiniteBenchConfig(BenchmarkConfig):
    """Which InfiniteBench tasks."""

    path: str = "xinrongzhang2022/InfiniteBench"
    """Folder that holds `<task>.jsonl`, or a data set on the Hub."""


class InfiniteBenchTasks(Benchmark):
    """InfiniteBench's tasks (a `TaskSet` that grades its samples)."""

    known = (
        "passkey",
        "kv_retrieval",
        "number_string",
        "code_run",
        "code_debug",
        "math_find",
        "longdialogue_qa_en",
        "longbook_qa_en",
        "longbook_sum_en",
        "longbook_choice_en",
        "longbook_qa_chn",
    )
    config: InfiniteBenchConfig

    def __init__(self, config: InfiniteBenchConfig) -> None:
        self._tasks: dict[str, HarnessTask] = {}
        super().__init__(config)

    def read(self, task: str) -> Records:
        file = task + "g" if task.endswith("_en") else task  # the files say "eng"
        names = tuple(dict.fromkeys((f"{file}.jsonl", f"{task}.jsonl")))
        what = f"InfiniteBench's {task}"
        return Records(locate(self.config.path, self.config.revision, names, what), FIELDS, "context")

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> Sample:
        record = _texts(record)
        asked = self._task(task, record)
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt=self.filled(task, record) or asked.prompt(record),
            answers=_expected(task, record),
            relevant=(),
            metric=OWN_METRIC,
            max_new_tokens=self.config.max_new_tokens.get(task, asked.max_new_tokens),
            stop=self.config.stop.get(task, asked.stop),
            delimiter="" if task.endswith("_chn") else asked.delimiter,
            drops_breaks=False,
            language="zh" if task.endswith("_chn") else "code" if task.startswith("code") else "en",
        )

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """`lm_eval`'s score of an answer."""
        record = _texts(self.record(task, split, index))
        return self._task(task, record).grade(record, prediction)

    def _task(self, task: str, record: dict[str, Any]) -> HarnessTask:
        if task not in self._tasks:
            self._tasks[task] = HarnessTask(f"infinitebench_{task}", "infinitebench", record)
        return self._tasks[task]


def _texts(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its answers and options as lists of texts; some files have numbers, or one text."""
    return {**record, "answer": list(texts(record["answer"])), "options": list(texts(record["options"] or ()))}


def _expected(task: str, record: dict[str, Any]) -> tuple[str, ...]:
    """What a model should write: the letter of the right option, where it is to choose one."""
    answers, options = record["answer"], record["options"]
    if task in ("code_debug", "longbook_choice_en") and answers[0] in options:
        return ("ABCDEFGHIJ"[options.index(answers[0])],)
    return tuple(answers)
