"""Random choices whose results are the same in every version of Python, and what sets that draw samples share.

Knows no task. `random.Random.random()` is the one method whose stream Python promises to keep.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from workers.tasks import SPLITS
from workers.tasks.source import Source

T = TypeVar("T")


def choose(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def draw(rng: random.Random, options: Iterable[T], count: int) -> list[T]:
    """`count` different options, in random order."""
    rest = list(options)
    return [rest.pop(int(rng.random() * len(rest))) for _ in range(count)]


class DrawnTasks(Source, ABC, Generic[T]):
    """A task set whose samples are drawn by code, kind by kind, and end nowhere (a `TaskSet`).

    T: what a sample is. A sample's own hash decides to which split it may belong, so that none stands in two splits,
    whatever the seeds: a draw that belongs elsewhere is drawn again.
    """

    locates = True
    known: Mapping[str, Any]
    """The kinds of task there are, by name."""
    noun: str
    """What a kind is called in messages."""

    def __init__(self, kinds: tuple[str, ...], seed: int) -> None:
        """kinds: those of this set; seed: another seed gives other samples. Raises ValueError for an unknown kind."""
        for kind in kinds:
            if kind not in self.known:
                raise ValueError(f"unknown {self.noun} {kind!r}: choose among {', '.join(self.known)}")
        self._kinds, self._seed = kinds, seed

    @property
    def tasks(self) -> tuple[str, ...]:
        """The configured kinds."""
        return tuple(self._kinds)

    def sample(self, task: str, split: str, index: int) -> T:
        """Sample `index` of a task's split. Raises ValueError for an unknown task or split."""
        if task not in self.known or split not in SPLITS:
            raise ValueError(f"unknown {self.noun} or split {task!r}, {split!r}: {list(self.known)}, {list(SPLITS)}")
        seed = hashlib.sha256(f"{self._seed}/{task}/{split}/{index}".encode()).digest()
        rng = random.Random(int.from_bytes(seed, "big"))
        while True:
            sample = self.draw(rng, task, split, index)
            if hashlib.sha256(self.content(sample)).digest()[0] % len(SPLITS) == SPLITS.index(split):
                return sample

    @abstractmethod
    def draw(self, rng: random.Random, task: str, split: str, index: int) -> T:
        """A sample of a kind, by the generator's stream alone; the other arguments are its name."""

    @abstractmethod
    def content(self, sample: T) -> bytes:
        """The part of a sample that must not stand in two splits."""


def check_ranges(config: object, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises ValueError, one line, for a number of a configuration that is not between its limits, ends included."""
    for name, (low, high) in limits.items():
        value = vars(config)[name]
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}: give {low} to {high}")
