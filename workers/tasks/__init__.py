"""What a sample of a task is, and which splits there are. Knows no model and imports nothing.

The rooms: `sources/` has one file for each set of tasks, `loading` finds them, `metrics` scores what they ask.
"""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "validation", "heldout")

OWN_METRIC = "own"
"""The metric of samples that their task set grades itself (`workers.protocols.TaskSet.grade`)."""


@dataclass(frozen=True)
class Turn:
    """A further question about the same prompt, asked when the one before has been answered."""

    question: str
    prefix: str
    """How its answer begins, which the model is given."""
    answer: str
    """What the model should write next."""


@dataclass(frozen=True)
class Sample:
    """One prompt with its reference answers."""

    task: str
    split: str
    index: int
    prompt: str
    answers: tuple[str, ...]
    """All right answers, as bare texts; the first one is what the model should write next."""
    relevant: tuple[tuple[int, int], ...]
    """Character spans (start, end) of the prompt, ascending, that an oracle memory keeps: the text's opening, the
    places that answer the question, and the question itself. Empty if they are not known."""
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
    """What separates the answer from the prompt."""
    chat: bool = True
    """Whether a chat template may go around the prompt."""
    language: str = "en"
    """Its language as in ISO 639, or `code`."""
    prefix: str = ""
    """How the answer begins, which the model is given (RULER's answer prefix): on a line behind the prompt, or where a
    chat template lets the model answer."""
    turns: tuple[Turn, ...] = ()
    """Questions that follow the first, in order; each adds its answer's probability to the sample's, none its score."""
    context: int = 0
    """Characters of the prompt in front of its question, which is what a memory has read before it is asked; 0: not
    known."""
    facts: tuple[tuple[int, int], ...] = ()
    """Character spans of all sentences that state facts, asked for or not; () if the task does not know them."""

    @property
    def completion(self) -> str:
        """The first answer as it continues the prompt: with the delimiter in front."""
        return self.delimiter + self.answers[0]
