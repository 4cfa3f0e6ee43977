"""What a task set is: a pure function from (task, split, index) to one sample. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

SPLITS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class Sample:
    """One prompt with its reference answers.

    `relevant` holds character spans (start, end) of `prompt`, ascending: what an oracle memory keeps, that is
    the text's opening, the places that answer the question, and the question itself. `answers` are bare
    texts; the first one is what the model should write next, and `completion` is that text as it continues
    the prompt.
    """

    task: str
    split: str
    index: int
    prompt: str
    answers: tuple[str, ...]
    relevant: tuple[tuple[int, int], ...]
    metric: str = "exact_match"
    """A name in `workers.tasks.metrics`."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; None: as many as the first reference has."""
    facts: tuple[tuple[int, int], ...] = ()
    """Character spans of all sentences that carry facts, asked for or not; () where a task does not know them."""

    @property
    def completion(self) -> str:
        """The first answer as a continuation of the prompt: with the space that parts it from the prompt."""
        return " " + self.answers[0]


class TaskSet(Protocol):
    """A set of tasks with disjoint splits."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        ...

    def sample(self, task: str, split: str, index: int) -> Sample:
        """Sample `index` (>= 0) of a task's split; a pure function of its arguments and the set's config."""
        ...
