"""Environments of gymnasium as a Decision Transformer sees them: numbers of a fixed width in and out, returns scaled.

Several environments may share one model: each has columns of its own in the model's states and actions, the others
are zero there. Knows no models and no memories; imports gymnasium when an environment is made.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class Environment:
    """One environment, and how a model sees it."""

    id: str
    """Its name in gymnasium."""
    steps: int
    """Step limit of an episode."""
    random: float
    """Mean return of random actions: the normalised return 0."""
    behaviour: float
    """Mean return of the policy that the model was trained on, without noise (D4RL: of its expert): 1."""
    target: float
    """Return that a rollout asks for at its start."""
    scale: float
    """Returns-to-go are divided by this before the model sees them."""
    lowest: float
    """Smallest return-to-go in the training data; a rollout asks for no less."""
    highest: float
    """Largest; where an episode goes badly, what is left of the target would soon be beyond anything seen."""
    state_at: int
    """First column of its observations in the model's states."""
    action_at: int
    """First column of its actions in the model's actions."""
    mean: tuple[float, ...]
    """Of each number of an observation, over the training data."""
    std: tuple[float, ...]
    """Likewise; observations are normalised by both."""
    seen: tuple[int, ...] | None = None
    """Which numbers of an observation the model sees; None: all of them."""

    def to_go(self, total: float) -> float:
        """What the model is told to reach yet when an episode has brought `total` so far."""
        return min(max(self.target - total, self.lowest), self.highest) / self.scale

    def normalised(self, total: float) -> float:
        """A return on the scale from random (0) to behaviour (1); it may lie outside."""
        return (total - self.random) / (self.behaviour - self.random)


class Simulation:
    """A running environment: normalised observations out, actions between -1 and 1 in.

    A discrete environment's action is the largest of as many numbers as it has choices. Raises ValueError, one line,
    when the environment cannot be made, or has other numbers than the description says.
    """

    def __init__(self, environment: Environment) -> None:
        self.about = environment
        self.env = make(environment.id, environment.steps)
        self.mean, self.std = np.array(environment.mean), np.array(environment.std)
        self.actions = Actions(self.env)
        width = int(np.prod(self.env.observation_space.shape))
        seen = range(width) if environment.seen is None else environment.seen
        if len(seen) != len(self.mean) or not set(seen) <= set(range(width)):
            raise ValueError(
                f"environment {environment.id} has observations of {width} numbers, the model was trained for "
                f"{len(self.mean)}: another version of gymnasium?"
            )
        self.seen = np.array(seen)
        self.total, self.steps, self.over = 0.0, 0, False

    def reset(self, seed: int) -> np.ndarray:
        """Begins an episode; returns its first observation, (observation numbers,) float32."""
        self.total, self.steps, self.over = 0.0, 0, False
        return self._seen(self.env.reset(seed=seed)[0])

    def step(self, action: np.ndarray) -> np.ndarray:
        """Takes an action; returns the next observation. `total` and `over` say what came of it."""
        observation, reward, terminated, truncated, _ = self.env.step(self.actions.to_environment(action))
        self.total += float(reward)
        self.steps += 1
        self.over = bool(terminated or truncated)
        return self._seen(observation)

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        return ((np.ravel(observation)[self.seen] - self.mean) / self.std).astype(np.float32)


class Actions:
    """Between an environment's own actions and numbers from -1 to 1."""

    def __init__(self, env: gymnasium.Env) -> None:
        space = env.action_space
        self.choices = int(space.n) if hasattr(space, "n") else None
        """How many actions a discrete environment has; None: they are numbers."""
        if self.choices is None:
            self.low, self.high = np.float64(space.low).ravel(), np.float64(space.high).ravel()
        self.width = self.choices or len(self.low)

    def to_environment(self, action: np.ndarray) -> Any:
        """action: (width,), clipped to -1 to 1; of a discrete environment the largest number's place."""
        if self.choices is not None:
            return int(np.argmax(action))
        clipped = np.clip(np.float64(action), -1.0, 1.0)
        return (self.low + (clipped + 1.0) / 2.0 * (self.high - self.low)).astype(np.float32)

    def settled(self, action: np.ndarray) -> np.ndarray:
        """What a model is told that it did: a discrete choice as 1 at its place and -1 elsewhere."""
        return action if self.choices is None else self.from_environment(int(np.argmax(action)))

    def from_environment(self, action: Any) -> np.ndarray:
        """The same backwards, (..., width) float32; a discrete action is 1 at its place and -1 elsewhere."""
        if self.choices is not None:
            return 2.0 * np.eye(self.choices, dtype=np.float32)[np.asarray(action, int)] - 1.0
        return (2.0 * (np.float64(action) - self.low) / (self.high - self.low) - 1.0).astype(np.float32)


def check_package() -> None:
    """Raises ValueError, one line, without the package gymnasium."""
    if importlib.util.find_spec("gymnasium") is None:
        raise ValueError("environments need the package gymnasium: pip install 'namm[control]'")


def make(name: str, steps: int | None = None) -> gymnasium.Env:
    """A gymnasium environment, steps: in place of its own limit. Raises ValueError, one line, when it is not there."""
    check_package()
    import gymnasium

    try:
        import mujoco

        mujoco.set_mju_user_warning(lambda _: None)  # else MuJoCo's remarks on gymnasium's models fill MUJOCO_LOG.TXT
    except ModuleNotFoundError:
        pass  # gymnasium says so where one is needed
    limit = {} if steps is None else {"max_episode_steps": steps}
    try:
        return gymnasium.make(name, disable_env_checker=True, **limit)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"environment {name} cannot be made: {reason}") from None


def versions() -> dict[str, str]:
    """Versions of what computes an episode."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("gymnasium", "mujoco"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found
