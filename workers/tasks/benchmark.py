"""What all benchmarks share: each task is a fixed list of records, split by content. Knows no benchmark and no model.

A hash of a record's document (the context) decides to which split it belongs, so that two questions on one document
are never in different splits, whatever the order of the file and whichever tasks are used.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from workers.protocols import RecordList
from workers.tasks import SPLITS, Sample
from workers.tasks.source import Source


@dataclass(frozen=True)
class RecordsConfig:
    """What can be chosen for any fixed list of records, wherever they come from."""

    tasks: tuple[str, ...] = ()
    """Tasks of this set; none given: all that the benchmark has."""
    revision: str | None = None
    """Branch, tag or commit of a data set on the Hub; None is its default branch."""
    fractions: tuple[float, ...] = (0.5, 0.2, 0.3)
    """Shares of the documents for training, validation and the held-out table."""
    disjoint: bool = True
    """False: each split has all samples, as in the paper, which tests on what it trained on."""
    templates: dict[str, str] = field(default_factory=dict)
    """Prompt templates of your own, by task; {name} stands for a record's value of that name."""
    max_new_tokens: dict[str, int] = field(default_factory=dict)
    """Most tokens of an answer, by task, in place of the benchmark's own limit."""
    stop: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Texts that end an answer, by task, in place of the benchmark's own."""

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or not min(self.fractions) >= 0 or not abs(sum(self.fractions) - 1) <= 1e-6:
            raise ValueError(f"fractions must be three shares that sum to 1, not {list(self.fractions)}")
        for name in ("templates", "max_new_tokens", "stop"):
            if self.tasks and (unknown := set(vars(self)[name]) - set(self.tasks)):
                raise ValueError(f"{name} names {', '.join(sorted(unknown))}, which tasks does not")
        for task, limit in self.max_new_tokens.items():
            if limit < 1:
                raise ValueError(f"max_new_tokens of {task} must be at least 1, not {limit}")
        for task, stops in self.stop.items():
            if "" in stops:
                raise ValueError(f"stop of {task} holds an empty text, which would end every answer: leave it out")


@dataclass(frozen=True)
class BenchmarkConfig(RecordsConfig):
    """What can be chosen for any benchmark that is read from files."""

    path: str = field(kw_only=True)
    """Folder with the benchmark's files, or a data set on the Hub (owner/name)."""


class Benchmark(Source, ABC):
    """The tasks of one benchmark (a `TaskSet`). A subclass says where records are and what a sample is made of.

    A task's file is read when it is first asked for. Training samples are drawn without replacement, pass after
    pass: index i is place i % n in the order of pass i // n, and each pass has its own shuffled order. Validation
    and held-out samples have one order, by content, and an end.
    """

    def __init__(self, config: RecordsConfig) -> None:
        """Raises ValueError for an unknown task."""
        self.config = config
        for task in config.tasks:
            self._check_known(task)
        self._records: dict[str, RecordList] = {}
        self._members: dict[tuple[str, str], list[int]] = {}
        self._passes: OrderedDict[tuple[str, int], list[int]] = OrderedDict()

    @property
    def known(self) -> tuple[str, ...]:
        """Names of the benchmark's tasks."""
        return ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The configured tasks."""
        return self.config.tasks or self.known

    def records(self, task: str) -> RecordList:
        """All records of a task. Raises ValueError, one line, if its file is missing or damaged."""
        if task not in self.tasks:
            raise ValueError(f"unknown task {task!r}; tasks of this set: {', '.join(self.tasks)}")
        if task not in self._records:
            self._records[task] = self.read(task)
        return self._records[task]

    def size(self, task: str, split: str) -> int:
        """Number of different samples in a split. Raises ValueError as `records` does, and if there are none."""
        return len(self._split(task, split))

    def answer_limit(self, task: str) -> int | None:
        """Most tokens of an answer, if that is known without the task's file."""
        return self.config.max_new_tokens.get(task)

    def fingerprint(self, task: str) -> str:
        """Digest of all of the task's records. Raises ValueError as `records` does."""
        return self.records(task).fingerprint

    def sample(self, task: str, split: str, index: int) -> Sample:
        """Sample `index` of a task's split.

        Raises ValueError as `records` does, and for an index beyond the end of a split other than `train`.
        """
        return self.make(task, split, index, self.record(task, split, index))

    def record(self, task: str, split: str, index: int) -> dict[str, Any]:
        """The record that the sample is made of. Raises ValueError as `sample` does."""
        return self.records(task)[self.place(task, split, index)]

    def place(self, task: str, split: str, index: int) -> int:
        """Index of that record among the task's records. Raises ValueError as `sample` does."""
        members = self._split(task, split)
        if split == "train":
            return self._shuffled(task, index // len(members))[index % len(members)]
        if index >= len(members):
            raise ValueError(f"{task} has {len(members)} {split} samples: there is no number {index}")
        return members[index]

    @abstractmethod
    def read(self, task: str) -> RecordList:
        """Finds and reads a task's file. Raises ValueError, one line, if it is missing or damaged."""

    def check(self, task: str, record: dict[str, Any]) -> None:
        """Raises ValueError, one line, for a record that no sample can be made of; called as the file is read."""
        self.filled(task, record)

    @abstractmethod
    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> Sample:
        """The sample of a record."""

    def filled(self, task: str, record: dict[str, Any]) -> str | None:
        """The configured template of a task with the record's values in it; None if there is no template."""
        if task not in self.config.templates:
            return None
        return fill(self.config.templates[task], record, f"tasks.templates.{task}")

    def _check_known(self, task: str) -> None:
        if task not in self.known:
            near = difflib.get_close_matches(task, self.known, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown task {task!r}; did you mean {near!r}? Known: {', '.join(self.known)}")

    def _split(self, task: str, split: str) -> list[int]:
        """Indices of a split's records, ordered by content."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: {', '.join(SPLITS)}")
        if (task, split) not in self._members:
            records = self.records(task)
            chosen = [i for i, group in enumerate(records.groups) if self._holds(split, group)]
            if not chosen:
                raise ValueError(
                    f"{task}: none of its {len(records)} samples is for {split}: raise that share of tasks.fractions "
                    "(train, validation, heldout), or set tasks.disjoint to false"
                )
            self._members[task, split] = sorted(chosen, key=lambda i: records.digests[i])
        return self._members[task, split]

    def _holds(self, split: str, group: bytes) -> bool:
        if not self.config.disjoint:
            return True
        train, validation, _ = self.config.fractions
        place = int.from_bytes(group[:8], "big") / 2**64
        return split == ("train" if place < train else "validation" if place < train + validation else "heldout")

    def _shuffled(self, task: str, number: int) -> list[int]:
        """The order of one pass over the training samples."""
        if (task, number) not in self._passes:
            digests = self.records(task).digests
            salt = f"{number}/".encode()
            order = sorted(self._split(task, "train"), key=lambda i: hashlib.sha256(salt + digests[i]).digest())
            self._passes[task, number] = order
            if len(self._passes) > 64:
                self._passes.popitem(last=False)
        return self._passes[task, number]


def fill(template: str, record: dict[str, Any], where: str) -> str:
    """A template with the record's values in it.

    where: where the template comes from, for messages. Raises ValueError for a name that the record does not have.
    """
    try:
        prompt = template.format_map(record)
    except KeyError as error:
        raise ValueError(f"{where}: the records have no {error}; they have {', '.join(record)}") from None
    except (ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{where}: is no template ({error}); a brace itself is written twice") from None
    if not prompt.strip():
        raise ValueError(f"{where}: gives a prompt that is blank")
    return prompt


def context_end(prompt: str, context: str) -> int:
    """Where a record's context ends in its prompt; 0 where the prompt does not have it whole."""
    at = prompt.find(context)
    return at + len(context) if at >= 0 else 0


def texts(value: Any) -> tuple[str, ...]:
    """One answer or several, as texts."""
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)


def read_json(file: Any, what: str) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError that names the file and what was expected."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); expected {what}") from None
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{file}{line}: expected {what}, as a JSON object") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected {what}, as a JSON object")
    return found
