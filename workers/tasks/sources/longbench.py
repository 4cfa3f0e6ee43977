"""LongBench: 21 tasks in English, Chinese and code. Knows no model.

Files: `data/<task>.jsonl` (or `data.zip` with them), one record a line with `input`, `context`, `answers` and
`all_classes`, as in the data set. Prompts are `lm_eval`'s, which are LongBench's own. Any other file in that format is
a task too, by its name, if `templates` has a prompt for it.

Source: THUDM/LongBench (arXiv 2308.14508), `config/dataset2maxlen.json`, `eval.py` and `pred.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from workers.tasks import Sample, fields, metrics
from workers.tasks.benchmark import Benchmark, BenchmarkConfig, context_end, texts
from workers.tasks.harness import HarnessTask
from workers.tasks.metrics import METRICS
from workers.tasks.records import Records, locate


class Facts(NamedTuple):
    """What LongBench says about a task."""

    metric: str
    max_new_tokens: int
    language: str = "en"
    stop: tuple[str, ...] = ()
    delimiter: str = " "
    chat: bool = True


LINE = ("\n",)  # LongBench scores the first line of these tasks' answers
FACTS = {
    "narrativeqa": Facts("qa_f1_score", 128),
    "qasper": Facts("qa_f1_score", 128),
    "multifieldqa_en": Facts("qa_f1_score", 64),
    "multifieldqa_zh": Facts("qa_f1_zh_score", 64, "zh", delimiter=""),
    "hotpotqa": Facts("qa_f1_score", 32),
    "2wikimqa": Facts("qa_f1_score", 32),
    "musique": Facts("qa_f1_score", 32),
    "dureader": Facts("rouge_zh_score", 128, "zh", delimiter=""),
    "gov_report": Facts("rouge_score", 512),
    "qmsum": Facts("rouge_score", 512),
    "multi_news": Facts("rouge_score", 512),
    "vcsum": Facts("rouge_zh_score", 512, "zh", delimiter=""),
    "trec": Facts("classification_score", 64, stop=LINE, chat=False),
    "triviaqa": Facts("qa_f1_score", 32, stop=LINE, chat=False),
    "samsum": Facts("rouge_score", 128, stop=LINE, chat=False),
    "lsht": Facts("classification_score", 64, "zh", LINE, "", False),
    "passage_count": Facts("count_score", 32),
    "passage_retrieval_en": Facts("retrieval_score", 32),
    "passage_retrieval_zh": Facts("retrieval_zh_score", 32, "zh", delimiter=""),
    "lcc": Facts("code_sim_score", 64, "code", delimiter="\n", chat=False),
    "repobench-p": Facts("code_sim_score", 64, "code", delimiter="\n", chat=False),
}
FIELDS = {
    "input": fields.text(),
    "context": fields.text(blank=False),
    "answers": fields.answers(),
    "all_classes": fields.texts(blank=False, required=False),
}


@dataclass(frozen=True)
class LongBenchConfig(BenchmarkConfig):
    """Which LongBench tasks."""

    path: str = "zai-org/LongBench"
    """Folder that holds `data/<task>.jsonl` or `data.zip`, or a data set on the Hub."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Metrics (`workers.tasks.metrics`) of tasks that are not LongBench's, by task; the default is `qa_f1_score`."""


class LongBenchTasks(Benchmark):
    """LongBench's tasks (a `TaskSet`)."""

    separates = True

    known = tuple(FACTS)
    config: LongBenchConfig

    def __init__(self, config: LongBenchConfig) -> None:
        """Raises ValueError for an unknown task or metric."""
        for task, metric in config.metrics.items():
            if metric not in METRICS:
                raise ValueError(f"metrics: unknown metric {metric!r} of {task}; known: {', '.join(METRICS)}")
        self._prompts: dict[str, HarnessTask] = {}
        super().__init__(config)

    def answer_limit(self, task: str) -> int | None:
        """Most tokens of an answer: the configuration's, or LongBench's."""
        return self.config.max_new_tokens.get(task, FACTS[task].max_new_tokens if task in FACTS else None)

    def read(self, task: str) -> Records:
        """The records of `<task>.jsonl`, from the folder or its archive."""
        names = (f"data/{task}.jsonl", f"{task}.jsonl", "data.zip")
        file = locate(self.config.path, self.config.revision, names, f"LongBench's {task}")
        member = f"data/{task}.jsonl" if file.suffix == ".zip" else None
        return Records(file, FIELDS, "context", member, check=partial(self.check, task))

    def check(self, task: str, record: dict[str, Any]) -> None:
        """Raises ValueError, one line, where the prompt is none, or the metric cannot score against the answers."""
        super().check(task, record)
        metric, classes = self._facts(task).metric, texts(record.get("all_classes") or ()) or None
        if task not in FACTS or metric == "classification_score":  # the others' references are LongBench's own
            metrics.check(metric, texts(record["answers"]), classes)

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> Sample:
        """The sample of a record, with LongBench's prompt unless a template is configured."""
        facts = self._facts(task)
        prompt = self.filled(task, record) or self._prompt(task, record)
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt=prompt,
            context=context_end(prompt, record["context"]),
            answers=texts(record["answers"]),
            relevant=(),
            metric=facts.metric,
            max_new_tokens=self.config.max_new_tokens.get(task, facts.max_new_tokens),
            stop=self.config.stop.get(task, facts.stop),
            classes=texts(record.get("all_classes") or ()),
            delimiter=facts.delimiter,
            chat=facts.chat,
            language=facts.language,
        )

    def _facts(self, task: str) -> Facts:
        return FACTS.get(task) or Facts(self.config.metrics.get(task, "qa_f1_score"), 32)

    def _prompt(self, task: str, record: dict[str, Any]) -> str:
        record = {**record, "question": record["input"]}  # as lm_eval's copy of the data set has it
        if task not in self._prompts:
            self._prompts[task] = HarnessTask(f"longbench_{task}", "longbench", [record])
        return self._prompts[task].prompt(record)

    def _check_known(self, task: str) -> None:
        if task not in self.config.templates:
            super()._check_known(task)
