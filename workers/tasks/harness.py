"""Prompts and grading as `lm_eval` has them. Knows nothing of models, splits or where records come from.

`lm_eval` (extra `benchmarks`) is imported when the first prompt is made: that takes seconds, and neither a head node
nor a worker that finds its prompts in Redis needs it.

Source: EleutherAI/lm-evaluation-harness 0.4.13, `lm_eval/tasks`.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workers.tasks.benchmark import texts


class HarnessTask:
    """One generation task of `lm_eval`.

    Args:
        name: the task's name in `lm_eval`.
        folder: the folder that defines it, absolute or relative to `lm_eval/tasks`; None looks through all of
            `lm_eval`, which takes 9 s.
        example: one record in the task's format, used in place of the data set that the task would fetch.
        metadata: arguments of a task that makes its own data (RULER: `max_seq_lengths`, `tokenizer`).

    Raises ValueError, one line, if `lm_eval` is not installed, has no such task, or cannot get its data.
    """

    def __init__(
        self,
        name: str,
        folder: str | None = None,
        example: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        try:
            # fuzzywuzzy asks for the package that changes its numbers
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tasks = importlib.import_module("lm_eval.tasks")
                datasets = importlib.import_module("datasets")
        except ModuleNotFoundError as error:
            raise ValueError(f'{name} needs {error.name}: pip install "namm[benchmarks]"') from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        place = None if folder is None else Path(str(tasks.__file__)).parent / folder
        manager = tasks.TaskManager(include_path=place, include_defaults=folder is None, metadata=metadata)
        if name not in manager.all_subtasks:
            raise ValueError(f"lm_eval has no task {name!r}: `lm_eval ls tasks` lists them")
        wanted: str | dict[str, Any] = name
        if example is not None:
            rows = datasets.Dataset.from_list([example])
            splits = _splits(manager, name)
            # only a group's members may be a known task with changes
            member = {"task": name, "custom_dataset": lambda **_: {split: rows for split in splits}}
            wanted = {"group": f"{name} on records of one's own", "task": [member]}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._task = manager.load([wanted])["tasks"][name]
        except Exception as error:  # whatever a task's own code, its data set or the Hub raise
            advice = _what_to_fetch(manager, name) if isinstance(error, OSError) else ""
            raise ValueError(f"lm_eval could not load {name}: {_one_line(error)}{advice}") from error
        if self._task.OUTPUT_TYPE != "generate_until":
            raise ValueError(f"{name} is no generation task ({self._task.OUTPUT_TYPE}): it has no answer to write")
        self.docs: Sequence[dict[str, Any]] = self._task.eval_docs
        """The records that the task is evaluated on."""
        generation = self._task.config.generation_kwargs or {}
        self.max_new_tokens = int(generation.get("max_gen_toks", 256))  # lm_eval's own default
        self.stop = texts(generation.get("until") or [])
        self.delimiter: str = self._task.config.target_delimiter
        self._shots = self._task.config.num_fewshot or 0

    def prompt(self, record: dict[str, Any]) -> str:
        """The prompt of a record, as `lm_eval` shows it to a model without a chat template."""
        task = self._task
        if self._shots:
            task.set_fewshot_seed(1234)  # lm_eval's own seed; the examples of a prompt depend on nothing else
        return task.fewshot_context(record, self._shots, gen_prefix=task.doc_to_prefix(record))

    def answers(self, record: dict[str, Any]) -> tuple[str, ...]:
        """The reference answers of a record."""
        return texts(self._task.doc_to_target(record))

    def grade(self, record: dict[str, Any], prediction: str) -> float:
        """Score by the task's first metric, 0 to 1. Raises ValueError if that gives no number for a single sample."""
        scores = self._task.process_results(record, [prediction])
        for value in scores.values():
            if not isinstance(value, int | float):
                raise ValueError(f"{self.name}: its metric gives no number for one sample, but {value!r}")
            if value != -1:  # RULER's mark for "not of this length"
                return float(value)
        return 0.0


def _splits(manager: Any, name: str) -> list[str]:
    """Names of the splits that a task wants of its data set."""
    config = manager.task_index[name].cfg or {}
    return [config[key] for key in ("test_split", "validation_split", "training_split") if config.get(key)] or ["test"]


def _what_to_fetch(manager: Any, name: str) -> str:
    path = (manager.task_index[name].cfg or {}).get("dataset_path")
    if not path:
        return ""
    return (
        f"; load {path} with the library datasets once where there is a network, and bring its cache to every node "
        "(HF_HOME moves it), or define the task on files of your own (dataset_path: json) and name that folder as "
        "tasks.path"
    )


def _one_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
