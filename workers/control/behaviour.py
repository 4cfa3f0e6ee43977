"""Behaviour policies, and the trajectories that they leave: what the small control model learns from.

Pendulum's controller is written by hand; Swimmer's is linear, found by CMA-ES. Knows no Decision Transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from workers.control.environments import Actions, make
from workers.control.trajectories import Trajectory
from workers.tasks.sources.episodes import COLLECTED, EpisodesConfig, EpisodesTasks

Policy = Callable[[np.ndarray], np.ndarray]
"""An observation in, an action from -1 to 1 out."""


@dataclass(frozen=True)
class Source:
    """An environment with somebody who knows how to act there."""

    id: str
    """Its name in gymnasium."""
    steps: int
    """Step limit of an episode."""
    policy: Callable[[int], Policy]
    """Makes the behaviour policy from a seed."""
    noise: float
    """Largest standard deviation of the noise on actions; each episode draws its own."""
    seen: tuple[int, ...]
    """Which numbers of an observation the model is shown; the policy sees all."""


def swing_up(observation: np.ndarray) -> np.ndarray:
    """Pendulum-v1: pumps energy up to that of standing still on top, then holds it there (PD control)."""
    cosine, sine, speed = observation
    if cosine > 0.85 and abs(speed) < 3.0:
        torque = -(12.0 * np.arctan2(sine, cosine) + 3.0 * speed)
    else:
        missing = 5.0 - (speed**2 / 6.0 + 5.0 * cosine)  # m g l / 2 = 5 on top; inertia m l^2 / 3, all of them 1
        torque = 3.0 * missing * (speed if speed else 1.0)
    return np.clip([torque / 2.0], -1.0, 1.0)


def linear(weights: np.ndarray) -> Policy:
    """weights: (action numbers, observation numbers + 1), the last column added."""
    return lambda observation: np.clip(weights[:, :-1] @ observation + weights[:, -1], -1.0, 1.0)


def find_linear(name: str, steps: int, seed: int, generations: int = 40, population: int = 16) -> Policy:
    """The linear policy that CMA-ES ends with, one episode a candidate, all candidates of a generation from one start.

    The distribution's mean is taken, not the luckiest candidate.
    """
    import cma

    env = make(name, steps)
    width = int(np.prod(env.observation_space.shape)) + 1
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
step to the next: with them, each action would follow from one observation, and no memory could be told from another."""


def act(env, policy: Policy, seed: int, noise: float = 0.0, rng: np.random.Generator | None = None) -> Trajectory:
    """One episode of a policy; noise: standard deviation of what is added to its actions, on the scale -1 to 1."""
    actions = Actions(env)
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
    """Every action as likely as any other."""
    return lambda _: rng.uniform(-1.0, 1.0, width)


def collect(name: str, source: Source, policy: Policy, episodes: int, seed: int) -> list[Trajectory]:
    """Noisy episodes, from starts that no evaluation has, as the model is shown them."""
    env, tasks = make(source.id, source.steps), EpisodesTasks(EpisodesConfig((name,)))
    rng = np.random.default_rng([seed, *name.encode()])
    starts = (tasks.sample(name, COLLECTED, index).seed for index in range(episodes))
    whole = (act(env, policy, start, source.noise * rng.random(), rng) for start in starts)
    return [replace(t, observations=t.observations[:, source.seen]) for t in whole]


def mean_return(source: Source, policy: Policy, starts: Iterable[int]) -> float:
    """Of a policy without noise over episodes from the given seeds."""
    env = make(source.id, source.steps)
    return float(np.mean([act(env, policy, start).total for start in starts]))
