"""The orchestrator's exchangeable parts, each as those who use it see it. Knows no implementation of any.

A class fits a protocol by having its members; inheriting from one brings the defaults that it declares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from orchestrator.fleet_events import Event
from workers.unit import PolicySpec, SampleRef, SampleResult

Results = list[list[SampleResult | None]]
"""results[policy][sample]; None where a sample could not be evaluated."""
Group = tuple[list[PolicySpec], list[SampleRef]]
"""Policies, and the samples that each of them is evaluated on."""


class Search(Protocol):
    """Maximises a fitness over vectors of N numbers: asked for candidates, then told how they did.

    A pure function of its configuration, its start and the fitness told. A job that starts again tells a new search
    what the old one was told, and must arrive at the same bits; a search that reads a clock, a global random generator
    or the number of threads breaks that.
    """

    @property
    def population(self) -> int:
        """Candidates in a generation."""

    @property
    def elite(self) -> int:
        """How many of a generation's best candidates the search learns from by their rank. Racing (`search.racing`)
        may estimate the fitness of the others, as long as it keeps them below; `population` where all ranks count."""

    @property
    def generation(self) -> int:
        """Generations told so far."""

    @property
    def mean(self) -> np.ndarray:
        """(N,) float32: the centre of the distribution, the vector to deploy."""

    @property
    def sigma(self) -> float:
        """Step size in the parameters' unit: with `mean`, where the next stage's search starts."""

    def ask(self) -> np.ndarray:
        """(population, N) float32: the candidates of this generation, the same ones until they are told."""

    def tell(self, fitness: np.ndarray, candidates: np.ndarray | None = None) -> None:
        """Learns from the generation that was asked, and moves on to the next.

        `fitness`: (population,), larger is better; one that is not finite is missing, never a zero.
        `candidates`: (population, N), where others than the asked ones were evaluated.
        Raises ValueError where no fitness is finite, for a wrong shape, or where nothing was asked.
        """


class Evaluate(Protocol):
    """Evaluates every policy on every sample."""

    def __call__(
        self, policies: list[PolicySpec], samples: list[SampleRef], progress: Callable[[int], None] = ...
    ) -> Results:
        """Results[policy][sample], None where a sample could not be evaluated.

        `progress`: called with the number of results that came in since the last call.
        """


class EvaluateGroups(Protocol):
    """Evaluates the policies of each group on that group's samples, all groups at once."""

    def __call__(self, groups: Sequence[Group], progress: Callable[[int], None] = ...) -> list[Results]:
        """The results of each group, as `Evaluate` gives them; `progress`: as there, over all groups."""


class Recorder(Protocol):
    """Keeps what an evolution does. Inherited from, it keeps nothing: a recorder overrides what it wants to know."""

    def begun(self, start: dict[str, Any]) -> None:
        """The rule that the search starts from is chosen. `start`: plain JSON values. Called again, with the same
        values, by an evolution that goes on."""
        return None

    def progress(self, generation: int, done: int, of: int) -> None:
        """A generation (from 0) under way has `done` of the `of` results that it waits for."""
        return None

    def looked(self, generation: int, memory: PolicySpec) -> None:
        """The search's mean after a generation (0: before the first) is, or was, looked at on validation samples.
        Called before that generation is told, and again, with the same values, by an evolution that goes on."""
        return None

    def told(self, record: dict[str, Any], settled: Sequence[SampleRef]) -> None:
        """The search was told a new generation. `record`: plain JSON values; `settled`: samples that nobody asks
        for again. What is kept here is `past` to an evolution that goes on."""
        return None

    def stage_over(self, entry: dict[str, Any], best: PolicySpec, mean: PolicySpec) -> None:
        """A stage has ended. `entry`: plain JSON values; `best`: its best on validation; `mean`: where the next
        stage starts. Called again, with the same values, by an evolution that goes on."""
        return None


class Fleet(Protocol):
    """Workers by number, each with at most one call at a time; those that are lost are replaced."""

    @property
    def wanted(self) -> int:
        """How many workers there would be if there were room for all of them."""

    def send(self, worker: int, method: str, *arguments: Any) -> int:
        """Calls a method of an idle worker (`workers.actor.EvaluatorActor`) and returns the call's number at once.

        The call ends with one event: `Answered`, `Raised`, or `Left` if the worker is lost.
        """

    def wait(self, seconds: float) -> list[Event]:
        """What has happened since the last call, in order; waits up to `seconds` for something to happen."""

    def end(self, worker: int, reason: str) -> None:
        """Ends a worker, whatever it is doing. `Left` with this reason follows, and another takes its place."""

    def close(self) -> None:
        """Ends all workers."""
