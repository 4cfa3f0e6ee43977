"""The interface of a target: how a frozen model is loaded, where the memory goes, what it is shown, how it is scored.

A target is one file of this package with one subclass of `Target`. Knows no policies and no units of work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from namm_core import MemoryCache
from workers.array_cache import ArrayCache
from workers.config import EvaluatorConfig, ModelConfig
from workers.tasks import TaskSet
from workers.timing import Timing
from workers.unit import SampleRef


class Shown(Protocol):
    """A prompt or an episode, ready for the model."""

    @property
    def tokens(self) -> int:
        """How many tokens of a cache it fills: what a budget is a fraction of."""
        ...

    @property
    def relevant(self) -> np.ndarray:
        """Positions of the tokens that an oracle keeps; empty where that is not known."""
        ...


@dataclass(frozen=True)
class RowResult:
    """What one row gave."""

    score: float
    """The task's metric; 0 to 1 for an answer, 0 for chance to 1 for perfect for a return (it may lie outside)."""
    logprob: float
    """Mean log-probability of the reference answer's tokens, nats; 0 where there is no reference."""
    kept: list[float]
    """Per layer: entries held / tokens seen (mean over KV heads), at the end of a prompt or an episode."""
    prediction: str
    """What the model answered, or did, for people."""


S = TypeVar("S", bound=Shown)


class Target(ABC, Generic[S]):
    """A frozen model with its tasks. Its constructor loads both; raises ValueError, one line, when it cannot."""

    model: PreTrainedModel
    """The transformer that a memory is placed in, `MemoryCache(target.model, policy)`: the whole model, or that part
    of it which has the attention layers."""
    tasks: TaskSet
    """Where samples come from."""
    stores = False
    """Whether what `sample` makes goes into the prompt store, where other workers find it."""

    @abstractmethod
    def __init__(self, config: EvaluatorConfig, store: ArrayCache) -> None: ...

    @staticmethod
    @abstractmethod
    def check(config: ModelConfig) -> None:
        """Raises ValueError, one line, when the model cannot be there; loads no weights."""

    @abstractmethod
    def sample(self, ref: SampleRef) -> S:
        """What the model is shown for a sample; a pure function of its arguments, the configuration and the data."""

    @abstractmethod
    def read(self, sample: S, cache: MemoryCache) -> None:
        """Shows the model one whole prompt, or lets it act through one whole episode, with a fresh cache of one row."""

    @abstractmethod
    def run(self, rows: list[S], cache: Cache | None) -> list[RowResult]:
        """Answers prompts, or acts through episodes, as the rows of one batch; they may be of unequal length.

        cache: a fresh `MemoryCache` with as many rows, or None for the stock full cache. A row's outcome does not
        depend on its batch-mates.
        """

    @abstractmethod
    def identity(self, refs: tuple[SampleRef, ...]) -> dict[str, Any]:
        """JSON values that name everything which the full cache's outcomes on these samples depend on."""

    def labels(self, sample: S) -> list[str]:
        """One short text for each token of a prompt, for pictures."""
        return [str(i) for i in range(sample.tokens)]

    def measure(self, sample: S, cache: Cache | None, tokens: int) -> Timing | None:
        """Seconds for the prompt and `tokens` forced ones after it; None where speeds are not measured."""
        return None
