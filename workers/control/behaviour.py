"""Behaviour policies and the trajectories they produce, from which the small control model learns.

Pendulum's controller is written by hand; Swimmer's is linear, found by CMA-ES. Knows no Decision Transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from workers.control.environments import Actions, make, observation_width
from workers.control.trajectories import Trajectory
from workers.tasks.sources.episodes import COLLECTED, EpisodesConfig, EpisodesTasks

if TYPE_CHECKING:
    import gymnasium

Policy = Callable[[np.ndarray], np.ndarray]
"""An observation in, an action from -1 to 1 out."""


@dataclass(frozen=True)
class Source:
    """An environment with a policy that acts well in it."""

    id: str
    """Its name in gymnasium."""
    steps: int
    """Step limit of an episode."""
    policy: Callable[[int], Policy]
    """Makes the behaviour policy from a seed."""
    noise: float
    """Largest standard deviation of the noise on actions; each episode draws its own."""
    seen: tuple[int, ...]
    """Indices of the numbers of an observation that the model is shown; the policy sees all of them."""


def swing_up(observation: np.ndarray) -> np.ndarray:
    """Pendulum-v1: pumps energy up to that of standing still at the top, then stays there (PD control)."""
    cosine, sine, speed = observation
    if cosine > 0.85 and abs(speed) < 3.0:
        torque = -(12.0 * np.arctan2(sine, cosine) + 3.0 * speed)
    else:
        missing = 5.0 - (speed**2 / 6.0 + 5.0 * cosine)  # m g l / 2 = 5 on top; inertia m l^2 / 3, all of them 1
        torque = 3.0 * missing * (speed if speed else 1.0)
    return np.clip([torque / 2.0], -1.0, 1.0)


def linear(weights: np.ndarray) -> Policy:
    """A linear policy. weights: (action numbers, observation numbers + 1), the last column is the bias."""
    return lambda observation: np.clip(weights[:, :-1] @ observation + weights[:, -1], -1.0, 1.0)


def find_linear(name: str, steps: int, seed: int, generations: int = 40, population: int = 16) -> Policy:
    """The linear policy that CMA-ES ends with; a candidate plays one episode, from the same start in each generation.

    It is the mean of the distribution, not the luckiest candidate.
    """
    import cma

    env = make(name, steps)
    width = observation_width(env) + 1
    shape = Actions(env).width, width
    options = {"popsize": population, "seed": seed + 2, "verbose": -9}  # 0 would be the clock; 1 was not tried
    search = cma.CMAEvolutionStrategy(np.zeros(shape[0] * width), 0.5, options)
    for generation in range(generations):
        asked = search.ask()
        search.tell(asked, [-act(env, linear(x.reshape(shape)), generation).total for x in asked])
    return linear(search.mean.reshape(shape))


SOURCES = {
    "swimmer": Source("Swimmer-v5", 300, lambda seed: find_linear("Swimmer-v5", 300, seed), 0.6, seen=(0, 1, 2)),
    "pendulum": Source("Pendulum-v1", 200, lambda seed: swing_up, 0.6, seen=(0, 1)),
}
"""What the shipped model is trained on, by name. It sees angles without their speeds, which it has to remember from one
step to the next: with the speeds, each action would follow from one observation, and all memories would score alike."""


def act(
    env: gymnasium.Env, policy: Policy, seed: int, noise: float = 0.0, rng: np.random.Generator | None = None
) -> Trajectory:
    """One episode of a policy.

    seed: what the environment is reset with; noise: standard deviation of what is added to its actions, on the scale
    -1 to 1, drawn from `rng`.
    """
    actions = Actions(env)
    rng = np.random.default_rng(seed) if rng is None else rng
    observation, over = env.reset(seed=seed)[0], False
    seen, done, rewards = [], [], []
    while not over:
        action = policy(np.ravel(observation))
        if noise:
            action = np.clip(action + noise * rng.standard_normal(actions.width), -1.0, 1.0)
        seen.append(np.ravel(observation))
        done.append(action)
        observation, reward, terminated, truncated, _ = env.step(actions.to_environment(action))
        rewards.append(float(reward))
        over = terminated or truncated
    return Trajectory(np.array(seen, np.float32), np.array(done, np.float32), np.array(rewards))


def at_random(rng: np.random.Generator, width: int) -> Policy:
    """Uniformly random actions of `width` numbers."""
    return lambda _: rng.uniform(-1.0, 1.0, width)


def collect(name: str, source: Source, policy: Policy, episodes: int, seed: int) -> list[Trajectory]:
    """Noisy episodes, from starts that no evaluation uses, with the observations that the model is shown."""
    env, tasks = make(source.id, source.steps), EpisodesTasks(EpisodesConfig((name,)))
    rng = np.random.default_rng([seed, *name.encode()])
    starts = (tasks.sample(name, COLLECTED, index).seed for index in range(episodes))
    whole = (act(env, policy, start, source.noise * rng.random(), rng) for start in starts)
    return [replace(t, observations=t.observations[:, source.seen]) for t in whole]


def mean_return(source: Source, policy: Policy, starts: Iterable[int]) -> float:
    """Mean return of a policy without noise over episodes from the given seeds."""
    env = make(source.id, source.steps)
    return float(np.mean([act(env, policy, start).total for start in starts]))
