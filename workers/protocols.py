"""The interfaces of this floor's exchangeable parts, all together: task sets, and targets with what they are shown.

A task set is one file of `workers.tasks.sources`, a target one file of `workers.targets`. Knows none of them, no
policy and no unit of work; imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from workers.unit import SampleRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from namm_core import MemoryCache
    from workers.array_cache import ArrayCache
    from workers.config import EvaluatorConfig, ModelConfig
    from workers.timing import Timing

FACT, QUESTION, FILLER, RELEVANT, OTHER = "facts", "question", "filler", "relevant", "other"
"""Kinds of a prompt's tokens."""
SampleT = TypeVar("SampleT", covariant=True)
"""What a task set's samples are, such as `workers.tasks.Sample`."""


class TaskSet(Protocol[SampleT]):
    """A set of tasks with disjoint splits. `workers.tasks.source.Source` has a default for most members."""

    @property
    def locates(self) -> bool:
        """Whether samples say which places of a prompt answer it, which an oracle memory needs."""
        ...

    @property
    def separates(self) -> bool:
        """Whether samples say where a prompt's context ends and its question begins (`evaluation.protocol`)."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names."""
        ...

    def sample(self, task: str, split: str, index: int) -> SampleT:
        """Sample `index` (>= 0) of a task's split; a pure function of its arguments, the set's config and its data.

        Training samples never end: where a task has a fixed list of them, each pass over the list has an order of
        its own. Raises ValueError for an unknown task or split, and for an index beyond the end of another split.
        """
        ...

    def size(self, task: str, split: str) -> int | None:
        """Number of different samples in a split; None: as many as anyone asks for."""
        ...

    def answer_limit(self, task: str) -> int | None:
        """Most tokens of an answer, where that is known without reading the task's data; else None."""
        ...

    def fingerprint(self, task: str) -> str:
        """Names the data that a task's samples are made of; empty if the configuration alone decides."""
        ...

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """Score of a model's answer to a sample whose metric is `OWN_METRIC`, 0 to 1; other samples are not asked."""
        ...


class RecordList(Protocol):
    """The records of one task, whether they stand in a file or elsewhere."""

    @property
    def digests(self) -> Sequence[bytes]:
        """SHA-256 of each record."""
        ...

    @property
    def groups(self) -> Sequence[bytes]:
        """SHA-256 of the document that each record is about: records on one document never part."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names all of the records together."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Shown(Protocol):
    """A prompt or an episode, ready for the model."""

    @property
    def tokens(self) -> int:
        """How many tokens of a cache it fills, which is what a budget is a fraction of."""
        ...

    @property
    def relevant(self) -> np.ndarray:
        """(relevant,) int, positions of the tokens that an oracle keeps; empty if they are not known."""
        ...


@dataclass(frozen=True)
class RowResult:
    """What one row of a batch gave."""

    score: float
    """The task's metric: 0 to 1 for an answer; for a return 0 is random and 1 as good as the model's teacher, and it
    may lie outside."""
    logprob: float
    """Mean log-probability of the reference answer's tokens, in nats; 0 if there is no reference."""
    kept: list[float]
    """Per layer: entries held / tokens seen (mean over KV heads), at the end of the prompt or episode."""
    prediction: str
    """What the model answered or did, as a text for people."""


S = TypeVar("S", bound=Shown)


class Target(ABC, Generic[S]):
    """A frozen model with its tasks: how it is loaded, where the memory goes, what it is shown, how it is scored.

    The constructor loads model and tasks, and raises ValueError, one line, if it cannot.
    """

    model: PreTrainedModel
    """The transformer that a memory is placed in, `MemoryCache(target.model, policy)`: the whole model, or the part of
    it that has the attention layers."""
    tasks: TaskSet[Any]
    """Where samples come from."""
    stores = False
    """Whether what `sample` makes goes into the array cache, where other workers find it."""

    @abstractmethod
    def __init__(self, config: EvaluatorConfig, arrays: ArrayCache) -> None: ...

    @staticmethod
    @abstractmethod
    def check(config: ModelConfig) -> None:
        """Raises ValueError, one line, if there can be no such model, or a package is missing; loads no weights."""

    @abstractmethod
    def sample(self, ref: SampleRef) -> S:
        """What the model is shown for a sample; a pure function of its arguments, the configuration and the data."""

    @abstractmethod
    def read(self, sample: S, cache: MemoryCache) -> None:
        """Shows the model one whole prompt, or lets it act through one whole episode, with a fresh cache of one row."""

    @abstractmethod
    def run(self, rows: list[S], cache: MemoryCache | None) -> list[RowResult]:
        """Answers prompts, or acts through episodes, as the rows of one batch; they may be of unequal length.

        cache: a fresh one with as many rows, or None for the stock full cache. A row's result does not depend on the
        other rows.
        """

    @abstractmethod
    def identity(self, refs: tuple[SampleRef, ...]) -> dict[str, Any]:
        """JSON values that name everything which the full cache's results on these samples depend on."""

    def context(self, sample: S) -> int | None:
        """How many of a prompt's tokens come before its question; None where that is not known."""
        return None

    def labels(self, sample: S) -> list[str]:
        """One short text for each token of a prompt, for pictures; without better knowledge its position."""
        return [str(i) for i in range(sample.tokens)]

    def kinds(self, ref: SampleRef, sample: S) -> list[str]:
        """The kind of each token of a prompt, for pictures; without better knowledge `RELEVANT` or `OTHER`."""
        found = [OTHER] * sample.tokens
        for position in sample.relevant.tolist():
            found[position] = RELEVANT
        return found

    def measure(self, sample: S, cache: MemoryCache | None, tokens: int) -> Timing | None:
        """Time and memory for the prompt and `tokens` forced tokens after it; None for a target that has no speeds."""
        return None
