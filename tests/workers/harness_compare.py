"""One task of `lm_eval`, the same records and the same answers: our scores beside those of `lm_eval`'s own evaluator.

    python -m tests.workers.harness_compare [N]

compares one task of every pipeline (prompts, filters, metrics, functions) that `lm_eval` has, or of every Nth, and
prints what came of each as JSON. Knows how to give `lm_eval` answers; nothing of what they are worth.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.workers.harness_documents import documents

ANSWERS = ("{}", " The answer is {}.", "#### {}", "So the answer is ({}).\n\nQ: and more", "none of it", "", "4", " B")
"""What a model says, {} being the first reference; documents take them in turn."""
DOCUMENTS = 12
PATIENCE = 15
"""Seconds for one task: some wait for a network."""


class NoDocuments(Exception):
    """No guess at a task's documents suits its own code; the message says why the last one did not."""


def compare(name: str) -> tuple[dict[str, float], dict[str, float]]:
    """Our table of a task's scores and `lm_eval`'s, equal prompts checked on the way. Raises `NoDocuments`."""
    from lm_eval.tasks._yaml_loader import load_yaml

    from workers.tasks.harness import HarnessTask, _all_tasks

    reason = ""
    for rows in documents(load_yaml(_all_tasks().task_index[name].yaml_path, resolve_func=True), DOCUMENTS):
        try:
            ours = HarnessTask(name, examples=rows)
        except ValueError as error:
            reason = str(error)
            continue
        records = [dict(record) for record in ours.docs]
        if records != [dict(record) for record in ours._task.eval_docs]:
            raise NoDocuments(
                "shuffles its records anew each time that lm_eval asks for them, so that none are its own"
            )
        references = [(ours.answers(record) or ("",))[0] for record in records]
        answers = [ANSWERS[i % len(ANSWERS)].replace("{}", text) for i, text in enumerate(references)]
        try:
            asked, expected = evaluated(name, rows, answers)
        except (Exception, SystemExit) as error:  # lm_eval itself does not get through with such documents
            reason = f"lm_eval: {error!r}"
            continue
        repeats = len(asked) // len(records)
        assert [ours.prompt(record, i) for i, record in enumerate(records)] == [text for text, _ in asked[::repeats]]
        until = asked[0][1].get("until", [])
        assert list(ours.stop) == [text for text in ([until] if isinstance(until, str) else until) if text]
        return ours.results(records, answers), expected
    raise NoDocuments(reason)


def evaluated(
    name: str, rows: list[dict[str, Any]], answers: list[str]
) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, float]]:
    """What `lm_eval` asks a model that gives these answers, and its table of scores."""
    import datasets
    import numpy as np
    from lm_eval import evaluator

    from workers.tasks.harness import _all_tasks, _seeded, _splits

    data, manager = datasets.Dataset.from_list(rows), _all_tasks()
    splits = _splits(manager, name)
    member = {"task": name, "custom_dataset": lambda **_: {split: data for split in splits}}
    with _seeded():
        task = manager.load([{"group": "records of one's own", "task": [member]}])["tasks"][name]
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(1234)
    model = says(answers)
    found = evaluator.evaluate(model, {"tasks": {name: task}}, bootstrap_iters=0, log_samples=False)
    table = found["results"][name]
    numbers = {k: v for k, v in table.items() if "," in k and "_stderr" not in k}
    return model.asked, {k: float(v) for k, v in numbers.items() if isinstance(v, int | float | np.number)}


def says(answers: list[str]) -> Any:
    """A model behind `lm_eval`'s interface that gives fixed answers, and notes what it was asked."""
    from lm_eval.api.model import LM

    class Says(LM):
        asked: list[tuple[str, dict[str, Any]]] = []

        def generate_until(self, requests, disable_tqdm=False):
            self.asked = [request.args for request in requests]
            return [answers[request.doc_id] for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

    return Says()


def equal(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """Whether two tables are the same, bit for bit, nan being nan."""
    same = (ours[key] == value or math.isnan(ours[key]) and math.isnan(value) for key, value in theirs.items())
    return set(ours) == set(theirs) and all(same)


def pipelines() -> dict[str, int]:
    """One generation task of every family and pipeline, and how many have it, where their code can be loaded."""
    from lm_eval.tasks import __file__ as place
    from lm_eval.tasks._yaml_loader import load_yaml

    from workers.tasks.harness import _all_tasks

    manager = _all_tasks()
    first: dict[str, str] = {}
    tasks: dict[str, int] = {}
    for name in manager.all_subtasks:
        file = manager.task_index[name].yaml_path
        if file is None or load_yaml(file, resolve_func=False).get("output_type", "generate_until") != "generate_until":
            continue
        try:
            config = load_yaml(file, resolve_func=True)
        except (Exception, SystemExit):  # wants a package, or the network
            continue
        family = Path(file).relative_to(Path(place).parent).parts[0]
        kept = ("process_results", "process_docs", "filter_list", "metric_list", "generation_kwargs", "class")
        also = ("num_fewshot", "repeats")
        code = [callable(config.get(key)) for key in ("doc_to_text", "doc_to_target")] + ["doc_to_choice" in config]
        key = repr((family, code, [_plain(config.get(key)) for key in kept], [config.get(key) for key in also]))
        tasks[first.setdefault(key, name)] = tasks.get(first.get(key, name), 0) + 1
    return tasks


def _plain(value: Any) -> Any:
    if callable(value):
        function = getattr(value, "func", value)
        return getattr(function, "__qualname__", repr(function))
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


class Slow(BaseException):
    """A task took longer than `PATIENCE`."""


def _ring(*_: Any) -> None:
    raise Slow


def main() -> None:
    """Prints names that are equal, those that differ with both tables, and those not compared by the reason."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"
    signal.signal(signal.SIGALRM, _ring)
    same: list[str] = []
    different: dict[str, Any] = {}
    left: dict[str, list[str]] = {}
    told = 0
    tasks = pipelines()
    for name in list(tasks)[:: int(sys.argv[1]) if len(sys.argv) > 1 else 1]:
        signal.alarm(PATIENCE)
        try:
            ours, theirs = compare(name)
            told += any(theirs.values())
            if equal(ours, theirs):
                same.append(name)
            else:
                different[name] = [ours, theirs]
        except (AssertionError, ValueError) as error:
            different[name] = str(error)[:300]
        except (NoDocuments, Slow) as error:
            left.setdefault(str(error)[:150].replace(name, "TASK") or "slow", []).append(name)
        finally:
            signal.alarm(0)
    stand_for = sum(tasks[name] for name in same)
    print(
        json.dumps(
            {"equal": same, "of tasks": stand_for, "not zero": told, "different": different, "not compared": left}
        )
    )


if __name__ == "__main__":
    main()
