"""OpenAI's evolution strategy: the gradient of the expected fitness, estimated from mirrored samples, for Adam.

Sources: T. Salimans, J. Ho, X. Chen, S. Sidor and I. Sutskever, *Evolution Strategies as a Scalable Alternative to
Reinforcement Learning* (arXiv 1703.03864): Algorithm 1, with the mirrored sampling and the fitness shaping of section
2; D. Kingma and J. Ba, *Adam* (arXiv 1412.6980). Knows vectors and their fitness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from namm_core.config import Range
from orchestrator.search.base import AskAndTell
from orchestrator.search.config import SearchConfig
from orchestrator.search.ranks import centred_ranks

FEWEST_PAIRS = 2
"""Of a single pair the ranks say only which of two opposite steps was better, by how much never."""
EPSILON = 1e-8
"""Adam's, below the line."""


@dataclass(frozen=True)
class OpenAIESConfig(SearchConfig):
    """OpenAI-ES's numbers; Adam's are those of its paper."""

    algorithm: str = "openai_es"
    learning_rate: Annotated[float, Range(above=0)] = 0.01
    """Adam's step size: about how far a parameter moves in a generation, in its own unit."""
    beta1: Annotated[float, Range(least=0, below=1)] = 0.9
    """Decay of the gradient's moving average, per generation."""
    beta2: Annotated[float, Range(least=0, below=1)] = 0.999
    """Decay of the squared gradient's moving average, per generation."""
    sigma_decay: Annotated[float, Range(above=0, most=1)] = 1.0
    """Factor of the step size sigma from one generation to the next; 1 keeps it at sigma0, as the paper does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population % 2:
            raise ValueError(f"population must be even, since openai_es draws mirrored pairs, not {self.population}")

    @property
    def summary(self) -> str:
        """The search in a few words."""
        return f"OpenAI-ES, sigma0 {self.sigma0:g}, Adam with step size {self.learning_rate:g}"

    def allowed_population(self, wanted: int) -> int:
        """The next even number."""
        return wanted + wanted % 2


class OpenAIES(AskAndTell):
    """Candidates are mean ± sigma epsilon_i, epsilon_i ~ N(0, I), pair by pair: 2i and 2i + 1 are mirror images.

    Fitness counts by its centred rank, F_i in -1/2 to 1/2, in which ties share theirs: a generation of equals has
    the gradient 0. A candidate that is missing takes its mirror image with it: left alone, that one would
    pull the mean to its own side by its whole rank instead of by what it is better than its opposite, and candidates
    whose answers are not finite tend to lie on one side. What is missing shortens the gradient in proportion. With
    fewer than 2 whole pairs the distribution, and Adam's memory, stay as they are.
    """

    Config = OpenAIESConfig
    config: OpenAIESConfig

    def __init__(self, config: OpenAIESConfig, start: np.ndarray) -> None:
        super().__init__(config, start)
        self._generator = np.random.RandomState(config.seed)
        self._mean, self._sigma = self.start.copy(), config.sigma0
        self._first, self._second = np.zeros_like(self._mean), np.zeros_like(self._mean)
        self._steps = 0

    @property
    def mean(self) -> np.ndarray:
        """(N,) float32: the centre of the distribution, the vector to deploy."""
        return self._mean.astype(np.float32)

    @property
    def sigma(self) -> float:
        """Standard deviation of each parameter."""
        return self._sigma

    def _sample(self) -> np.ndarray:
        half = self._generator.randn(self.population // 2, len(self._mean))
        noise = np.stack((half, -half), axis=1).reshape(self.population, -1)
        return self._mean + self._sigma * noise

    def _learn(self, candidates: np.ndarray, fitness: np.ndarray) -> None:
        whole = np.isfinite(fitness).reshape(-1, 2).all(axis=1)
        if whole.sum() < FEWEST_PAIRS:
            return
        told = np.repeat(whole, 2)
        noise = (candidates[told] - self._mean) / self._sigma  # of what was evaluated, rounding included
        shaped = centred_ranks(fitness[told])
        # Algorithm 1, line 6. Summed in order, not by BLAS: its order, and so the last bits, would be the machine's.
        gradient = (shaped[:, None] * noise).sum(axis=0) / (self.population * self._sigma)
        self._mean = self._mean + self._adam(gradient)
        self._sigma *= self.config.sigma_decay

    def _adam(self, gradient: np.ndarray) -> np.ndarray:
        """(N,): Adam's step up the gradient (its Algorithm 1)."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        self._steps += 1
        self._first = beta1 * self._first + (1 - beta1) * gradient
        self._second = beta2 * self._second + (1 - beta2) * gradient**2
        first = self._first / (1 - beta1**self._steps)
        second = self._second / (1 - beta2**self._steps)
        return self.config.learning_rate * first / (np.sqrt(second) + EPSILON)
