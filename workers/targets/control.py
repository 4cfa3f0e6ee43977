"""Control: a Decision Transformer acts through whole episodes of gymnasium, scored by the normalised return.

The memory is placed in the model's inner encoder; an episode's tokens are return-to-go, state and action of each step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from namm_core import MemoryCache
from workers import models
from workers.array_cache import ArrayCache
from workers.config import EvaluatorConfig, ModelConfig
from workers.control import decision, environments
from workers.control.environments import Simulation
from workers.control.rollout import roll_out
from workers.protocols import RowResult, Target, TaskSet
from workers.tasks.loading import load_tasks
from workers.tasks.sources.episodes import Start
from workers.unit import SampleRef

environments.check_package()


@dataclass(frozen=True)
class Episode:
    """One episode that is still to be played."""

    task: str
    """Name of its environment."""
    seed: int
    """What the environment is reset with."""
    tokens: int
    """Tokens in the cache at the step limit: three for each step, except for the last action, which nobody reads."""
    relevant: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), compare=False)


class Control(Target[Episode]):
    """A Decision Transformer from transformers."""

    tasks: TaskSet[Start]

    def __init__(self, config: EvaluatorConfig, arrays: ArrayCache) -> None:
        """See `Target`; raises ValueError too for an environment that the model does not know."""
        self.config = config
        self.tasks = load_tasks(config.tasks)
        self.decision, self.environments = decision.load(config.model)
        self.model = self.decision.encoder
        unknown = sorted(set(self.tasks.tasks) - set(self.environments))
        if unknown:
            raise ValueError(
                f"tasks.environments: {config.model.path} does not know {', '.join(unknown)}; it knows "
                f"{', '.join(self.environments)}"
            )
        self._weights_digest = models.weights_digest(config.model.path)
        self._idle: dict[str, list[Simulation]] = {name: [] for name in self.environments}

    @staticmethod
    def check(config: ModelConfig) -> None:
        """See `Target.check`."""
        decision.check(config)

    def sample(self, ref: SampleRef) -> Episode:
        """The episode of a sample; nothing is simulated yet."""
        start = self.tasks.sample(*ref)
        return Episode(ref.task, start.seed, 3 * self.environments[ref.task].steps - 1)

    def read(self, sample: Episode, cache: MemoryCache) -> None:
        """Acts through one episode."""
        self.run([sample], cache)

    def run(self, rows: list[Episode], cache: MemoryCache | None) -> list[RowResult]:
        """Acts through the episodes; a score is the normalised return."""
        simulations = [self._simulation(row.task) for row in rows]
        results = []
        for simulation, lived in zip(
            simulations, roll_out(self.decision, simulations, [row.seed for row in rows], cache), strict=True
        ):
            did = f"return {lived.total:.1f} in {lived.steps} steps"
            results.append(RowResult(simulation.about.normalised(lived.total), 0.0, lived.kept, did))
        for row, simulation in zip(rows, simulations, strict=True):
            self._idle[row.task].append(simulation)
        return results

    def identity(self, refs: tuple[SampleRef, ...]) -> dict[str, Any]:
        """Weights, environments, the simulators' versions and the tasks' configuration."""
        model = self.config.model
        return {
            "model": [self._weights_digest, model.dtype, self.model.device.type],
            "environments": {ref.task: dataclasses.asdict(self.environments[ref.task]) for ref in refs},
            "versions": environments.versions(),
            "tasks": self.config.tasks,
        }

    def labels(self, sample: Episode) -> list[str]:
        """`R12`, `s12`, `a12`: return-to-go, state and action of step 12."""
        return [f"{'Rsa'[i % 3]}{i // 3}" for i in range(sample.tokens)]

    def _simulation(self, name: str) -> Simulation:
        """An environment that is not in use; making one costs more than resetting it."""
        return self._idle[name].pop() if self._idle[name] else Simulation(self.environments[name])
