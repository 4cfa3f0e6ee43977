"""Train the small Decision Transformer from scratch: `python -m workers.pretraining.control --out FOLDER`.

It learns from trajectories of this repository's behaviour policies (`control.behaviour`), or from one of D4RL's files
(`--d4rl FILE --env ID`), in windows of a few steps from anywhere in an episode. `--measure` prints how well it acts
with the whole episode as context, and with a short one. Knows nothing of memories.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads on shared cores cost a factor of ten
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from workers.config import ModelConfig
from workers.control import behaviour, decision
from workers.control.environments import Actions, Environment, Simulation, make, observation_width
from workers.control.rollout import roll_out, roll_out_short
from workers.control.trajectories import Trajectory
from workers.tasks.sources.episodes import EpisodesConfig, EpisodesTasks

REFERENCE_EPISODES = 100
HIDDEN, LAYERS, HEADS = 64, 3, 2


def describe(
    name: str,
    steps: int,
    trajectories: list[Trajectory],
    random: float,
    behaviour: float,
    target: float,
    columns: tuple[int, int] = (0, 0),
    seen: tuple[int, ...] | None = None,
) -> Environment:
    """How a model is to see an environment.

    name, steps: its name in gymnasium and its step limit; random, behaviour, target: returns, as in `Environment`;
    columns: the environment's first column in the model's states and in its actions; seen: as in `Environment`.
    """
    numbers = np.concatenate([t.observations for t in trajectories]).astype(np.float64)
    to_go = np.concatenate([t.to_go for t in trajectories])
    return Environment(
        id=name,
        steps=steps,
        random=random,
        behaviour=behaviour,
        target=target,
        scale=float(max(np.abs(to_go).max(), 1e-6)),
        lowest=float(to_go.min()),
        highest=float(to_go.max()),
        state_at=columns[0],
        action_at=columns[1],
        mean=tuple(numbers.mean(0).tolist()),
        std=tuple((numbers.std(0) + 1e-6).tolist()),
        seen=seen,
    )


def collected(episodes: int, seed: int) -> dict[str, tuple[Environment, list[Trajectory]]]:
    """The behaviour policies' environments with their trajectories."""
    found, columns = {}, (0, 0)
    for name, source in behaviour.SOURCES.items():
        policy = source.policy(seed)
        trajectories = behaviour.collect(name, source, policy, episodes, seed)
        tasks = EpisodesTasks(EpisodesConfig((name,)))
        starts = [tasks.sample(name, "train", index).seed for index in range(REFERENCE_EPISODES)]
        width = trajectories[0].actions.shape[1]
        chance = behaviour.at_random(np.random.default_rng(seed), width)
        low, high = (behaviour.mean_return(source, p, starts) for p in (chance, policy))
        about = describe(source.id, source.steps, trajectories, low, high, high, columns, source.seen)
        columns = columns[0] + len(about.mean), columns[1] + width
        noisy = np.mean([t.total for t in trajectories])
        print(
            f"{name}: random {about.random:.1f}, behaviour {about.behaviour:.1f}, noisy episodes {noisy:.1f}",
            flush=True,
        )
        found[name] = about, trajectories
    return found


def from_d4rl(file: Path, name: str, steps: int | None) -> dict[str, tuple[Environment, list[Trajectory]]]:
    """The same from one of D4RL's files; reference returns are D4RL's, if it has any for this environment.

    Raises ValueError, one line, if the file does not belong to the environment.
    """
    from workers.control import d4rl

    trajectories = d4rl.read(file)
    env = make(name, steps)
    actions = Actions(env)
    seen = observation_width(env)
    wanted, got = (seen, actions.width), (trajectories[0].observations.shape[1], trajectories[0].actions.shape[1])
    if actions.choices is not None or wanted != got:
        raise ValueError(
            f"{file} has observations and actions of {got[0]} and {got[1]} numbers, {name} has {wanted[0]} and "
            f"{wanted[1] if actions.choices is None else 'discrete ones'}: another environment"
        )
    scaled = [Trajectory(t.observations, actions.from_environment(t.actions), t.rewards) for t in trajectories]
    own_limit = None if env.spec is None else env.spec.max_episode_steps
    steps = steps or own_limit or max(map(len, trajectories))
    best = max(t.total for t in trajectories)
    reference = d4rl.reference(name) or d4rl.Reference(0.0, best)
    about = describe(name, steps, scaled, reference.random, reference.expert, best)
    task = name.split("-")[0].lower()
    print(f"{task}: {len(trajectories)} episodes, random {reference.random:.1f}, expert {reference.expert:.1f}")
    return {task: (about, scaled)}


def build_model(environments: list[Environment], action_numbers: int, longest: int) -> DecisionTransformerModel:
    """The untrained model. longest: how many steps of an episode it can tell apart.

    Its inner position embedding has one row, since `forward` feeds no position ids but zero.
    """
    return DecisionTransformerModel(
        DecisionTransformerConfig(
            state_dim=max(about.state_at + len(about.mean) for about in environments),
            act_dim=action_numbers,
            hidden_size=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=1,
            max_ep_len=longest,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


class Windows:
    """Windows of a few steps from anywhere in any episode, as batches of tensors; short episodes end in zeros.

    Half of them begin in the first 35 % of an episode: its beginning is harder, and less common, than the rest.
    """

    def __init__(self, found: list[tuple[Environment, list[Trajectory]]], config: DecisionTransformerConfig) -> None:
        self.found = found
        self.config = config

    def draw(self, rng: np.random.Generator, rows: int, window: int) -> dict[str, torch.Tensor]:
        """Arguments of `DecisionTransformerModel.forward`, each (rows, window, ...).

        And `fitted`, (rows, window, action numbers): 1 where an action counts, else 0.
        """
        out: dict[str, np.ndarray] = {
            "states": np.zeros((rows, window, self.config.state_dim), np.float32),
            "actions": np.zeros((rows, window, self.config.act_dim), np.float32),
            "returns_to_go": np.zeros((rows, window, 1), np.float32),
            "timesteps": np.zeros((rows, window), np.int64),
            "fitted": np.zeros((rows, window, self.config.act_dim), np.float32),
        }
        for row in range(rows):
            about, trajectories = self.found[row % len(self.found)]
            episode = trajectories[rng.integers(len(trajectories))]
            first = int((max(len(episode) - window, 0) + 1) * rng.random() ** 1.5)
            span = slice(first, min(first + window, len(episode)))
            length = span.stop - span.start
            state = slice(about.state_at, about.state_at + len(about.mean))
            action = slice(about.action_at, about.action_at + episode.actions.shape[1])
            out["states"][row, :length, state] = (episode.observations[span] - about.mean) / about.std
            out["actions"][row, :length, action] = episode.actions[span]
            out["returns_to_go"][row, :length, 0] = episode.to_go[span] / about.scale
            out["timesteps"][row, :length] = np.arange(span.start, span.stop)
            out["fitted"][row, :length, action] = 1.0
        return {name: torch.from_numpy(array) for name, array in out.items()}


def train(model: DecisionTransformerModel, windows: Windows, steps: int, rows: int, window: int, seed: int) -> None:
    """Train in place to predict the actions (mean squared error). The learning rate rises, then falls linearly to 0."""
    rng = np.random.default_rng(seed)
    peak = 1e-3
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    started, losses = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 100, (steps - step) / (0.6 * steps))
        batch = windows.draw(rng, rows, window)
        fitted = batch.pop("fitted")
        error = (model(**batch).action_preds - batch["actions"]) ** 2
        loss = (error * fitted).sum() / fitted.sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses += float(loss.detach())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps}  loss {losses / 200:.4f}  {seconds:.0f} s, {left:.0f} s left", flush=True)
            losses = 0.0


def measure(folder: Path, episodes: int, context: int) -> None:
    """Print mean returns on validation episodes: the whole episode as context, and the newest `context` steps."""
    model, environments = decision.load(ModelConfig(str(folder)))
    print("environment  context  return  normalised (standard error)")
    for name, about in environments.items():
        tasks = EpisodesTasks(EpisodesConfig((name,)))
        seeds = [tasks.sample(name, "validation", index).seed for index in range(episodes)]
        rows = [Simulation(about) for _ in seeds]
        for label, run in (
            ("whole", lambda rows=rows, seeds=seeds: roll_out(model, rows, seeds)),
            (f"{context} steps", lambda rows=rows, seeds=seeds: roll_out_short(model, rows, seeds, context)),
        ):
            totals = np.array([lived.total for lived in run()])
            scores = np.array([about.normalised(total) for total in totals])
            error = scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
            print(f"{name:12} {label:>8} {totals.mean():8.1f}  {scores.mean():.3f} ({error:.3f})", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="workers.pretraining.control", description="Train the control model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of policies, noise, weights and batches")
    parser.add_argument("--episodes", type=int, default=400, help="trajectories of each environment to collect")
    parser.add_argument("--rows", type=int, default=32, help="windows in a batch")
    parser.add_argument("--window", type=int, default=20, help="steps in a window, three tokens each")
    parser.add_argument("--d4rl", type=Path, help="train on this HDF5 file of D4RL instead")
    parser.add_argument("--env", help="with --d4rl: gymnasium's name of the environment, such as Hopper-v5")
    parser.add_argument("--limit", type=int, help="with --d4rl: step limit of an episode; default: gymnasium's")
    parser.add_argument("--measure", action="store_true", help="measure the model in --out instead of training")
    parser.add_argument("--measured", type=int, default=50, help="validation episodes to measure on")
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except ValueError as error:
        print(f"workers.pretraining.control: {error}", file=sys.stderr)
        return 2


def _run(chosen: argparse.Namespace) -> int:
    if chosen.measure:
        measure(chosen.out, chosen.measured, chosen.window)
        return 0
    if (chosen.d4rl is None) != (chosen.env is None):
        raise ValueError("--d4rl and --env go together")
    torch.manual_seed(chosen.seed)
    if chosen.d4rl is None:
        found = collected(chosen.episodes, chosen.seed)
    else:
        found = from_d4rl(chosen.d4rl, chosen.env, chosen.limit)
    environments = {name: about for name, (about, _) in found.items()}
    act_dim = max(about.action_at + episodes[0].actions.shape[1] for about, episodes in found.values())
    longest = max(max(about.steps, *map(len, episodes)) for about, episodes in found.values())
    model = build_model(list(environments.values()), act_dim, longest)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train(model, Windows(list(found.values()), model.config), chosen.steps, chosen.rows, chosen.window, chosen.seed)
    decision.save(model, environments, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
