"""Environments of gymnasium as a Decision Transformer sees them: numbers of a fixed width in and out, returns scaled.

Several environments may share one model: each has its own columns in the model's states and actions, where the others
are zero. Knows no models and no memories; imports gymnasium when an environment is made.
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
    """Mean return of random actions, which is the normalised return 0."""
    behaviour: float
    """Mean return of the policy that the model was trained on, without noise (D4RL: of its expert), which is 1."""
    target: float
    """Return that a rollout asks for at its start."""
    scale: float
    """Returns-to-go are divided by this before the model sees them."""
    lowest: float
    """Smallest return-to-go in the training data; a rollout never asks for less."""
    highest: float
    """Largest return-to-go in the training data; a rollout never asks for more, since in an episode that goes badly the
    rest of the target would soon be beyond anything seen in training."""
    state_at: int
    """First column of its observations in the model's states."""
    action_at: int
    """First column of its actions in the model's actions."""
    mean: tuple[float, ...]
    """Mean of each number of an observation over the training data."""
    std: tuple[float, ...]
    """Standard deviation likewise; observations are normalised by both."""
    seen: tuple[int, ...] | None = None
    """Which numbers of an observation the model sees; None: all of them."""

    def to_go(self, total: float) -> float:
        """The scaled return-to-go that the model is given once an episode has brought a return of `total`."""
        return min(max(self.target - total, self.lowest), self.highest) / self.scale

    def normalised(self, total: float) -> float:
        """A return on the scale from random (0) to behaviour (1); it may be outside that range."""
        return (total - self.random) / (self.behaviour - self.random)


class Simulation:
    """A running environment: normalised observations out, actions between -1 and 1 in.

    In a discrete environment an action is as many numbers as there are choices, and the largest one is chosen. Raises
    ValueError, one line, if the environment cannot be made, or differs from its description.

    Attributes:
        about: the description.
        total, steps: return and number of steps of the episode so far.
        over: whether the episode has ended.
    """

    def __init__(self, environment: Environment) -> None:
        self.about = environment
        self.env = make(environment.id, environment.steps)
        self.mean, self.std = np.array(environment.mean), np.array(environment.std)
        self.actions = Actions(self.env)
        width = observation_width(self.env)
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
        """Takes an action (`actions.width`,); returns the next observation, (observation numbers,) float32."""
        observation, reward, terminated, truncated, _ = self.env.step(self.actions.to_environment(action))
        self.total += float(reward)
        self.steps += 1
        self.over = bool(terminated or truncated)
        return self._seen(observation)

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        return ((np.ravel(observation)[self.seen] - self.mean) / self.std).astype(np.float32)


class Actions:
    """Translates between an environment's own actions and numbers from -1 to 1.

    Raises ValueError, one line, for actions that are neither numbers nor one choice among several.

    Attributes:
        choices: how many actions a discrete environment has; None if actions are numbers.
        width: how many numbers from -1 to 1 an action is.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        from gymnasium.spaces import Box, Discrete

        space = env.action_space
        self.choices: int | None = None
        if isinstance(space, Discrete):
            self.choices = self.width = int(space.n)
        elif isinstance(space, Box):
            self.low, self.high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
            self.width = len(self.low)
        else:
            raise ValueError(f"actions that are a {type(space).__name__} are not served: Box and Discrete are")

    def to_environment(self, action: np.ndarray) -> Any:
        """The environment's own action: `action` (width,), clipped to -1 to 1 and scaled, or the index of its largest
        number."""
        if self.choices is not None:
            return int(np.argmax(action))
        clipped = np.clip(np.float64(action), -1.0, 1.0)
        return (self.low + (clipped + 1.0) / 2.0 * (self.high - self.low)).astype(np.float32)

    def settled(self, action: np.ndarray) -> np.ndarray:
        """The action (width,) that a model is told it took: a discrete choice is 1 at its index and -1 elsewhere."""
        return action if self.choices is None else self.from_environment(int(np.argmax(action)))

    def from_environment(self, action: Any) -> np.ndarray:
        """The numbers (..., width), float32, of one or more of the environment's own actions; see `settled`."""
        if self.choices is not None:
            return 2.0 * np.eye(self.choices, dtype=np.float32)[np.asarray(action, int)] - 1.0
        return (2.0 * (np.float64(action) - self.low) / (self.high - self.low) - 1.0).astype(np.float32)


def observation_width(env: gymnasium.Env) -> int:
    """How many numbers an observation is. Raises ValueError, one line, if it is not one array of numbers."""
    shape = env.observation_space.shape
    if shape is None:
        raise ValueError(f"observations that are a {type(env.observation_space).__name__} are not served")
    return int(np.prod(shape))


def check_package() -> None:
    """Raises ValueError, one line, without the package gymnasium."""
    if importlib.util.find_spec("gymnasium") is None:
        raise ValueError("environments need the package gymnasium: pip install 'namm[control]'")


def make(name: str, steps: int | None = None) -> gymnasium.Env:
    """A gymnasium environment; steps: step limit of an episode in place of its own.

    Raises ValueError, one line, if there is no such environment, or a package is missing.
    """
    check_package()
    import gymnasium

    try:
        import mujoco  # type: ignore[import-untyped]  # it carries no types

        mujoco.set_mju_user_warning(lambda _: None)  # else MuJoCo's remarks on gymnasium's models fill MUJOCO_LOG.TXT
    except ModuleNotFoundError:
        pass  # gymnasium says so if the environment needs it
    limit = {} if steps is None else {"max_episode_steps": steps}
    try:
        return gymnasium.make(name, disable_env_checker=True, **limit)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"environment {name} cannot be made: {reason}") from None


def versions() -> dict[str, str]:
    """Versions of the packages that an episode's numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("gymnasium", "mujoco"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found
