"""What a task set is: a pure function from (task, split, index) to one sample. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

SPLITS = ("train", "validation", "heldout")

OWN_METRIC = "own"
"""The metric of samples that their task set grades by itself (`Grader`)."""


@dataclass(frozen=True)
class Sample:
    """One prompt with its reference answers.

    `relevant` holds character spans (start, end) of `prompt`, ascending: what an oracle memory keeps, that is
    the text's opening, the places that answer the question, and the question itself; empty where that is not
    known. `answers` are bare texts; the first one is what the model should write next, and `completion` is that
    text as it continues the prompt.
    """

    task: str
    split: str
    index: int
    prompt: str
    answers: tuple[str, ...]
    relevant: tuple[tuple[int, int], ...]
    metric: str = "exact_match"
    """A name in `workers.tasks.metrics`, or `OWN_METRIC`."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; None: as many as the first reference has."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    drops_breaks: bool = True
    """Whether line breaks in front of an answer go before a line break ends it, as in LongBench."""
    classes: tuple[str, ...] = ()
    """Names of all classes, for `classification_score`."""
    delimiter: str = " "
    """What parts the answer from the prompt."""
    chat: bool = True
    """Whether a chat template may go around the prompt."""
    language: str = "en"
    """Its language, as ISO 639 has it."""
    facts: tuple[tuple[int, int], ...] = ()
    """Character spans of all sentences that carry facts, asked for or not; () where a task does not know them."""

    @property
    def completion(self) -> str:
        """The first answer as a continuation of the prompt: with the space that parts it from the prompt."""
        return self.delimiter + self.answers[0]


class TaskSet(Protocol):
    """A set of tasks with disjoint splits."""

    locates: bool
    """Whether samples say which places of a prompt answer it, which an oracle memory needs."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        ...

    def sample(self, task: str, split: str, index: int) -> Sample:
        """Sample `index` (>= 0) of a task's split; a pure function of its arguments, the set's config and its data.

        Training samples never end: where a task has a fixed list of them, each pass over the list has an order of
        its own. Raises ValueError where the index is beyond the end of another split.
        """
        ...

    def size(self, task: str, split: str) -> int | None:
        """Different samples of a split; None: as many as anyone asks for."""
        ...

    def fingerprint(self, task: str) -> str:
        """Names the data that a task's samples are made of; empty where the configuration alone decides."""
        ...


class Grader(Protocol):
    """A task set with samples whose metric is `OWN_METRIC`."""

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """Score of what a model answered to a sample, 0 to 1."""
        ...
