"""Episodes: a task is an environment, a sample is the seed of one episode. Knows environments by name only.

Which environments there are, and what a return is worth, is up to the model: its folder describes those that it was
trained on (`workers.control.decision`).
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.tasks import SPLITS
from workers.tasks.source import Source

COLLECTED = "collected"
"""The split of the episodes that a model was trained on: never evaluated."""


@dataclass(frozen=True)
class EpisodesConfig:
    """The episodes' configuration."""

    environments: tuple[str, ...]
    """Names of environments, as in the model's folder."""
    seed: int = 0
    """Seed of all episodes; another seed gives other episodes."""

    def __post_init__(self) -> None:
        if not self.environments or len(set(self.environments)) < len(self.environments):
            raise ValueError(f"environments must be one or more different names, not {list(self.environments)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")


@dataclass(frozen=True)
class Start:
    """One episode by name."""

    task: str
    split: str
    index: int
    seed: int
    """What the environment is reset with."""


class EpisodesTasks(Source):
    """Seeds of episodes, no two splits sharing one (a `TaskSet`)."""

    def __init__(self, config: EpisodesConfig) -> None:
        self.config = config

    @property
    def tasks(self) -> tuple[str, ...]:
        """The configured environments."""
        return self.config.environments

    def sample(self, task: str, split: str, index: int) -> Start:
        """Episode `index` of an environment's split. Raises ValueError for an unknown task or split."""
        if task not in self.tasks:
            raise ValueError(f"unknown task {task!r}; tasks of this set: {', '.join(self.tasks)}")
        splits = (*SPLITS, COLLECTED)
        if split not in splits:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(splits)}")
        return Start(task, split, index, (self.config.seed << 40) + len(splits) * index + splits.index(split))
