"""Prompts and grading as `lm_eval` has them. Knows nothing of models, splits or where records come from.

An answer goes through all that `lm_eval` does with one: the task's filters, its metrics or its own `process_results`,
and the aggregation of each metric. `lm_eval` (extra `benchmarks`) is imported when the first prompt is made: that takes
seconds, and neither a head node nor a worker that finds its prompts in Redis needs it.

Source: EleutherAI/lm-evaluation-harness 0.4.13, `lm_eval/evaluator.py`, `lm_eval/api/task.py` and `lm_eval/tasks`.
"""

from __future__ import annotations

import importlib
import logging
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from workers.tasks.benchmark import texts

FEWSHOT_SEED = 1234
"""What `lm_eval` seeds the choice of examples with."""
NOT_SCORED = -1
"""What some tasks (RULER, BABILong) give for a metric that is not for this record."""


class HarnessTask:
    """One generation task of `lm_eval`.

    Args:
        name: the task's name in `lm_eval`.
        folder: the folder of `lm_eval/tasks` that defines it, or one of your own; None looks through all of them,
            which takes 9 s.
        examples: records in the task's format, given instead of the data set that the task would fetch.
        metadata: arguments of a task that generates its data (RULER: `max_seq_lengths`, `tokenizer`).
        metric: which of the task's numbers `grade` gives, named as in `lm_eval`'s tables: a metric, or metric and
            filter ("exact_match,flexible-extract"). None: the first metric of the first filter that is better when
            higher.

    Raises ValueError, one line, where `lm_eval` is not there, has no such task, cannot get its data or would run code
    that a model wrote, and where the task has no such metric.
    """

    def __init__(
        self,
        name: str,
        folder: str | None = None,
        examples: Sequence[dict[str, Any]] | None = None,
        metadata: dict[str, Any] | None = None,
        metric: str | None = None,
    ) -> None:
        self.name = name
        try:
            # fuzzywuzzy asks for the package that changes its numbers
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tasks = importlib.import_module("lm_eval.tasks")
                datasets = importlib.import_module("datasets")
                self._normalised = importlib.import_module("lm_eval.models.utils").normalize_gen_kwargs
                self._mean = importlib.import_module("lm_eval.api.metrics").mean
        except ModuleNotFoundError as error:
            raise ValueError(f'{name} needs {error.name}: pip install "namm[benchmarks]"') from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        if folder is None and not metadata:
            manager = _all_tasks()
        else:
            place = None if folder is None else Path(str(tasks.__file__)).parent / folder
            manager = tasks.TaskManager(include_path=place, include_defaults=folder is None, metadata=metadata)
        if name not in manager.all_subtasks:
            raise ValueError(f"lm_eval has no task {name!r}: `lm_eval ls tasks` lists them")
        wanted: str | dict[str, Any] = name
        if examples is not None:
            try:
                rows = datasets.Dataset.from_list(list(examples))
            except OverflowError:
                raise ValueError(f"{name}: a number in its records is too large") from None
            splits = _splits(manager, name)
            # only a group's members may be a known task with changes
            member = {"task": name, "custom_dataset": lambda **_: {split: rows for split in splits}}
            wanted = {"group": f"{name} on records of one's own", "task": [member]}
        try:
            with warnings.catch_warnings(), _seeded():
                warnings.simplefilter("ignore")
                self._task = manager.load([wanted])["tasks"][name]
                self.docs: Sequence[dict[str, Any]] = self._task.eval_docs
                """Records that the task is evaluated on."""
        except (Exception, SystemExit) as error:  # whatever a task's own code, its data set or the Hub raise
            advice = _what_to_fetch(manager, name) if isinstance(error, OSError) else ""
            raise ValueError(f"lm_eval could not load {name}: {_one_line(error)}{advice}") from error
        if self._task.OUTPUT_TYPE not in ("generate_until", None):
            raise ValueError(f"{name} is no generation task ({self._task.OUTPUT_TYPE}): it has no answer to write")
        if getattr(self._task, "UNSAFE_CODE", False):
            raise ValueError(f"{name} runs the code that a model writes: it is refused here")
        if getattr(self._task, "MULTIMODAL", False):
            raise ValueError(f"{name} shows pictures or sounds beside its text: it is refused here")
        self._shots = self._task.config.num_fewshot or 0
        self._drawn: list[str] | None = None
        settings = self._settings()
        self.max_new_tokens: int = settings["max_gen_toks"]
        self.stop = tuple(text for text in settings["until"] if text)  # lm_eval passes over an empty one
        self.delimiter: str = self._task.config.target_delimiter
        self._metric = metric

    def check(self) -> None:
        """Raises ValueError, one line, where an answer to the first record cannot be graded."""
        self.grade(self.docs[0], "")

    def prompt(self, record: dict[str, Any], number: int | None = None) -> str:
        """The prompt of a record, as `lm_eval` gives it to a model without a chat template.

        number: the record's place among `docs`. The examples that precede a record are `lm_eval`'s own for that place,
        which depend on those drawn for all places before; without a number they are those of the first place.
        """
        task = self._task
        if not self._shots or number is None:
            task.set_fewshot_seed(FEWSHOT_SEED)
            return self._context(record)
        if self._drawn is None:
            task.set_fewshot_seed(FEWSHOT_SEED)
            self._drawn = [self._context(doc) for doc in self.docs]
        return self._drawn[number]

    def answers(self, record: dict[str, Any]) -> tuple[str, ...]:
        """The reference answers of a record."""
        target = self._task.doc_to_target(record)
        if self._task.config.doc_to_choice is not None and isinstance(target, int):
            target = self._task.doc_to_choice(record)[target]
        return texts(target)

    def results(self, records: Sequence[dict[str, Any]], predictions: Sequence[str]) -> dict[str, float]:
        """`lm_eval`'s table of these records and answers, metrics that give no number left out.

        Keys are as in its tables, metric and filter ("exact_match,strict-match"). A metric of a whole corpus (BLEU, F1
        over classes) is no mean of single answers' numbers: here it is what `lm_eval` reports. Raises ValueError, one
        line, where a filter or a metric fails.
        """
        values = self._values(records, predictions)
        table = {f"{metric},{key}": self._aggregated(metric, items) for (metric, key), items in values.items()}
        return {key: value for key, value in table.items() if value is not None}

    def grade(self, record: dict[str, Any], prediction: str) -> float:
        """What the chosen metric would be in `lm_eval`'s table if this answer were the only one.

        Most metrics are 0 to 1, BLEU and its kind 0 to 100. Raises ValueError, one line, where a filter or a metric
        fails or gives no number for one sample.
        """
        values = self._values([record], [prediction])
        names = [f"{metric},{key}" for metric, key in values]
        if self._metric is None:
            better = self._task.higher_is_better() or {}
            asked = [(metric, items) for (metric, _), items in values.items() if better.get(metric, True)]
        else:
            asked = [
                (metric, items)
                for (metric, key), items in values.items()
                if self._metric in (metric, f"{metric},{key}")
            ][:1]
            if not asked:
                raise ValueError(f"{self.name} has no metric {self._metric!r}; it has {', '.join(names) or 'none'}")
        silent = False
        for metric, items in asked:
            value = self._aggregated(metric, items)
            if value == NOT_SCORED:
                silent = True
            elif value is not None and math.isfinite(value):
                return value
        if silent:
            return 0.0
        raise ValueError(
            f"{self.name}: no metric that is better when higher gives a number for one sample (it has "
            f"{', '.join(names) or 'none'})"
        )

    def _context(self, record: dict[str, Any]) -> str:
        # As lm_eval.api.task.Task.build_all_requests calls it.
        return self._task.fewshot_context(
            record,
            num_fewshot=self._shots,
            system_instruction=None,
            apply_chat_template=False,
            fewshot_as_multiturn=False,
            chat_template=None,
            gen_prefix=self._task.doc_to_prefix(record),
        )

    def _request(self, record: dict[str, Any], number: int = 0) -> Any:
        """`lm_eval`'s request for a record's answer."""
        task = self._task
        repeats = task.config.repeats
        about = {"metadata": (task.config.task, number, repeats), "apply_chat_template": False, "chat_template": None}
        made = task.construct_requests(doc=record, ctx="", **about)
        made = made if isinstance(made, list) else [made]
        if [request.request_type for request in made] != ["generate_until"]:
            kinds = ", ".join(request.request_type for request in made)
            raise ValueError(f"{self.name} asks for more than one answer to write ({kinds}): it is refused here")
        return made[0]

    def _settings(self) -> dict[str, Any]:
        """How `lm_eval` would generate: `until` and `max_gen_toks` among others."""
        return dict(self._normalised(dict(self._request(self.docs[0]).args[1]), 256))  # 256: its own default

    def _values(
        self, records: Sequence[dict[str, Any]], predictions: Sequence[str]
    ) -> dict[tuple[str, str], list[Any]]:
        """Each record's value by metric and filter, as `lm_eval.evaluator.evaluate` finds them."""
        task = self._task
        requests = [self._request(record, number) for number, record in enumerate(records)]
        for request, prediction in zip(requests, predictions, strict=True):
            request.resps.extend([prediction] * (request.repeats or 1))  # greedy answers are the same each time
        values: dict[tuple[str, str], list[Any]] = {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for one in task._filters:
                    one.apply(requests)
                for key in requests[0].filtered_resps:
                    for record, request in zip(records, requests, strict=True):
                        for metric, value in task.process_results(record, [request.filtered_resps[key]]).items():
                            values.setdefault((metric, key), []).append(value)
        except (Exception, SystemExit) as error:  # whatever a task's own code or a metric's library raise
            raise ValueError(f"lm_eval could not grade {self.name}: {_one_line(error)}") from error
        return values

    def _aggregated(self, metric: str, items: list[Any]) -> float | None:
        """The metric over records, as `lm_eval.evaluator_utils._compute_task_aggregations` has it; None: no number."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = self._task.aggregation().get(metric, self._mean)(items)
        except (Exception, SystemExit) as error:
            if len(items) == 1:  # a correlation, say, needs more than one
                return None
            raise ValueError(f"lm_eval could not grade {self.name}, {metric}: {_one_line(error)}") from error
        return float(value) if isinstance(value, int | float | np.number | np.bool_) else None


@lru_cache(maxsize=1)
def _all_tasks() -> Any:
    """`lm_eval`'s index of all its tasks."""
    return importlib.import_module("lm_eval.tasks").TaskManager()


@contextmanager
def _seeded() -> Iterator[None]:
    """Seeds as `lm_eval` sets before it loads a task, some of which shuffle their records; the former state after."""
    python, arrays = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def _splits(manager: Any, name: str) -> list[str]:
    """Names of the splits that a task asks its data set for."""
    config = _definition(manager, name)
    keys = ("test_split", "validation_split", "training_split", "fewshot_split")
    found = [config.get(key) for key in keys] + [(config.get("fewshot_config") or {}).get("split")]
    return [split for split in dict.fromkeys(found) if split] or ["test"]


def _definition(manager: Any, name: str) -> dict[str, Any]:
    """A task's YAML with what it includes, functions as their names."""
    entry = manager.task_index[name]
    if entry.yaml_path is None:
        return entry.cfg or {}
    return importlib.import_module("lm_eval.tasks._yaml_loader").load_yaml(entry.yaml_path, resolve_func=False)


def _what_to_fetch(manager: Any, name: str) -> str:
    path = _definition(manager, name).get("dataset_path")
    if not path:
        return ""
    return (
        f"; load {path} with the library datasets once where there is a network, and bring its cache to every node "
        "(HF_HOME moves it), or define the task on files of your own (dataset_path: json) and name that folder as "
        "tasks.path"
    )


def _one_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
