"""InfiniteBench: 11 tasks of 100k tokens and more. Knows no model.

Files: `<task>.jsonl`, one record a line with `id`, `context`, `input`, `answer` and `options`, as the data set has
them. Prompts, limits and grading are `lm_eval`'s, which leaves out `math_calc`.

Source: OpenBMB/InfiniteBench (arXiv 2402.13718).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from workers.tasks import OWN_METRIC, Sample, choices, fields
from workers.tasks.benchmark import Benchmark, BenchmarkConfig, texts
from workers.tasks.harness import HarnessTask
from workers.tasks.records import Records, locate

FIELDS = {
    "context": fields.text(blank=False),
    "input": fields.text(),
    "answer": fields.answers(str, int, float),
    "options": fields.Field(
        (list, str), lambda value: fields.texts().wrong(value) if isinstance(value, list) else None
    ),
}
CHOICES = ("code_debug", "longbook_choice_en")
"""Tasks whose answer is the letter of an option."""


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
        """The records of `<task>.jsonl`."""
        file = task + "g" if task.endswith("_en") else task  # the files say "eng"
        names = tuple(dict.fromkeys((f"{file}.jsonl", f"{task}.jsonl")))
        what = f"InfiniteBench's {task}"
        file_found = locate(self.config.path, self.config.revision, names, what)
        return Records(file_found, FIELDS, "context", check=partial(self.check, task))

    def check(self, task: str, record: dict[str, Any]) -> None:
        """Raises ValueError, one line, where the prompt is none, or the answer is none of the options."""
        record = _texts(record)
        super().check(task, record)
        if task in CHOICES and record["answer"][0] not in choices.checked(record["options"], "options"):
            raise ValueError(f"expected the answer to be one of its options, found {fields.shown(record['answer'][0])}")

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> Sample:
        """The sample of a record, with `lm_eval`'s prompt unless a template is configured."""
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
        """`lm_eval`'s score of an answer, 0 to 1."""
        record = _texts(self.record(task, split, index))
        return self._task(task, record).grade(record, prediction)

    def _task(self, task: str, record: dict[str, Any]) -> HarnessTask:
        if task not in self._tasks:
            self._tasks[task] = HarnessTask(f"infinitebench_{task}", "infinitebench", [record])
        return self._tasks[task]


def _texts(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its answers and options as lists of texts; some files have numbers, or a single text."""
    return {**record, "answer": list(texts(record["answer"])), "options": list(texts(record["options"] or ()))}


def _expected(task: str, record: dict[str, Any]) -> tuple[str, ...]:
    """What a model should write: the letter of the right option if it has to choose one, else the answers."""
    answers, options = record["answer"], record["options"]
    if task in CHOICES:
        return (choices.LETTERS[options.index(answers[0])],)
    return tuple(answers)
