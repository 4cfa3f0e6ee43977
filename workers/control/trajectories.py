"""Trajectories, which a Decision Transformer is trained on. Knows no environments and no models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trajectory:
    """One episode."""

    observations: np.ndarray
    """(steps, observation numbers) float32, the observation before each action."""
    actions: np.ndarray
    """(steps, action numbers) float32; the environment's own scale in D4RL's files, -1 to 1 in what is trained on."""
    rewards: np.ndarray
    """(steps,) float64, the reward of each action."""

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total(self) -> float:
        """Its return, the sum of its rewards."""
        return float(self.rewards.sum())

    @property
    def to_go(self) -> np.ndarray:
        """(steps,) float64, the return from each step on."""
        return np.cumsum(self.rewards[::-1])[::-1]
