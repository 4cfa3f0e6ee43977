"""Control: acting with a cache is what the stock model does without one, and the shipped model acts well."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import DecisionTransformerModel

from namm_core import MemoryCache, NammConfig
from namm_core.policies import named, names
from workers.config import EvaluatorConfig, ModelConfig
from workers.control import behaviour, decision
from workers.control.environments import Environment, Simulation, make
from workers.control.rollout import Lived, roll_out, roll_out_short
from workers.evaluator import Evaluator
from workers.pretraining.control import build_model
from workers.tasks import SPLITS
from workers.tasks.sources.episodes import COLLECTED, EpisodesConfig, EpisodesTasks
from workers.unit import PolicySpec, SampleRef, Unit

STEPS = 50


def described(name: str, numbers: int, state_at: int, action_at: int) -> Environment:
    return Environment(
        name, STEPS, -1.0, 1.0, 0.5, 2.0, -9.0, 9.0, state_at, action_at, mean=(0.1,) * numbers, std=(0.9,) * numbers
    )


# CartPole is discrete and soon over.
ENVIRONMENTS = {
    "swimmer": described("Swimmer-v5", 8, 0, 0),
    "cartpole": described("CartPole-v1", 4, 8, 2),
    "pendulum": described("Pendulum-v1", 3, 12, 4),
}
ROWS = ["pendulum", "cartpole", "swimmer", "cartpole", "cartpole", "pendulum"]


@pytest.fixture(scope="module")
def untrained() -> DecisionTransformerModel:
    torch.manual_seed(0)
    model = build_model(list(ENVIRONMENTS.values()), action_numbers=5, longest=STEPS).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.12)  # lively, but not so that rounding errors grow
    return model


def lived(model, rows: list[str], policy: str | None = None, budget: int = 30) -> list[Lived]:
    """One episode a row; policy: None is the stock cache."""
    rows, seeds = [Simulation(ENVIRONMENTS[name]) for name in rows], [10 + i for i in range(len(rows))]
    if policy is None:
        return roll_out(model, rows, seeds)
    with MemoryCache(model.encoder, named(policy)(budget=torch.full((len(rows),), budget), update_interval=16)) as past:
        return roll_out(model, rows, seeds, past)


def replayed(model, name: str, seed: int, actions: np.ndarray) -> np.ndarray:
    """What the stock `forward` would have done at each step of an episode, given the whole of it."""
    about = ENVIRONMENTS[name]
    simulation = Simulation(about)
    states, to_go = torch.zeros(1, len(actions), model.config.state_dim), torch.zeros(1, len(actions), 1)
    done = torch.zeros(1, len(actions), model.config.act_dim)
    state = simulation.reset(seed)
    for step, action in enumerate(actions):
        states[0, step, about.state_at : about.state_at + len(state)] = torch.from_numpy(state)
        to_go[0, step] = min(max(about.target - simulation.total, about.lowest), about.highest) / about.scale
        done[0, step, about.action_at : about.action_at + len(action)] = torch.from_numpy(action)
        state = simulation.step(action)
    assert simulation.over
    with torch.inference_mode():
        got = model(
            states=states, actions=done, returns_to_go=to_go, timesteps=torch.arange(len(actions))[None]
        ).action_preds[0, :, about.action_at : about.action_at + actions.shape[1]]
    return np.array([simulation.actions.settled(a) for a in got.numpy()])


@pytest.mark.parametrize("policy", [None, "streaming"])
def test_acting_with_a_cache_is_what_the_stock_model_does(untrained, policy):
    """Rows of unequal length, with the stock cache and with a memory that keeps everything."""
    got = lived(untrained, ROWS, policy, budget=10_000)
    assert len({episode.steps for episode in got}) > 2 and max(episode.steps for episode in got) == STEPS
    for i, (name, episode) in enumerate(zip(ROWS, got, strict=True)):
        assert np.abs(replayed(untrained, name, 10 + i, episode.actions) - episode.actions).max() < 1e-5
        assert episode.kept == [1.0] * untrained.config.n_layer


def test_the_short_context_that_holds_the_episode_is_the_whole_one(untrained):
    rows = [Simulation(ENVIRONMENTS[name]) for name in ROWS]
    short = roll_out_short(untrained, rows, [10 + i for i in range(len(ROWS))], STEPS)
    for a, b in zip(short, lived(untrained, ROWS), strict=True):
        assert a.steps == b.steps and np.abs(a.actions - b.actions).max() < 1e-4


@pytest.mark.parametrize("policy", [None, "h2o"])
def test_a_row_does_not_depend_on_its_mates_and_seeds_give_the_same_bits(untrained, policy):
    together = lived(untrained, ROWS, policy)
    for a, b in zip(together, lived(untrained, ROWS, policy), strict=True):
        assert a.total == b.total and (a.actions == b.actions).all() and a.kept == b.kept
    for a, b in zip(together, lived(untrained, ROWS[:2], policy), strict=False):
        assert a.steps == b.steps and np.abs(a.actions - b.actions).max() < 1e-4
        assert a.kept == pytest.approx(b.kept, abs=1e-6)


@pytest.mark.parametrize("policy", [name for name in names() if name not in ("full", "oracle")])
def test_every_policy_forgets_and_that_changes_what_is_done(untrained, policy):
    (full,), (short,) = lived(untrained, ["pendulum"]), lived(untrained, ["pendulum"], policy)
    assert np.mean(short.kept) == pytest.approx((30 + 149 % 16) / 149)  # the budget, and what came since the update
    assert np.abs(full.actions - short.actions).max() > 1e-3


@pytest.fixture(scope="module")
def evaluator(control_model) -> Evaluator:
    tasks = {"source": "episodes", "environments": ["swimmer", "pendulum"]}
    config = EvaluatorConfig(ModelConfig(str(control_model)), tasks, NammConfig(update_interval=128), target="control")
    return Evaluator(config)


REFS = tuple(SampleRef(task, "validation", i) for task in ("swimmer", "pendulum") for i in range(4))


def test_the_shipped_model_acts_well_with_the_whole_episode_in_its_cache(evaluator):
    results = evaluator.evaluate(Unit((PolicySpec("full"),), REFS))[0]
    for task in ("swimmer", "pendulum"):
        assert np.mean([r.score for r in results if r.task == task]) > 0.5
    assert all(r.kept == 1.0 and r.tokens == 3 * int(r.prediction.split()[-2]) - 1 for r in results)


def test_candidates_and_statistics_of_a_memory(evaluator):
    """Two candidates on one episode: the one that keeps everything scores as the full cache does."""
    keep, drop = np.zeros(4172, np.float32), np.zeros(4172, np.float32)
    keep[-1], drop[-1] = 1.0, -1.0
    mean, var, count = evaluator.statistics(list(REFS[4:5]))
    given = mean, var, count
    assert mean.shape == (17,) and (var > 0).all()
    unit = Unit((PolicySpec("namm", keep, given), PolicySpec("namm", drop, given)), REFS[4:5])
    (kept,), (dropped,) = evaluator.evaluate(unit)
    (full,) = evaluator.evaluate(Unit((PolicySpec("full"),), REFS[4:5]))[0]
    assert kept.kept == 1.0 and kept.score == pytest.approx(full.score, abs=1e-3)
    assert dropped.kept == pytest.approx(88 / 599)  # the newest token at the last update, and 87 since


def test_behaviour_policies_act_and_are_collected_as_the_model_sees_them():
    source = behaviour.SOURCES["pendulum"]
    assert behaviour.mean_return(source, behaviour.swing_up, range(5)) > -400  # random actions: about -1,200
    first, again = (behaviour.collect("pendulum", source, behaviour.swing_up, 2, seed=3) for _ in range(2))
    assert [t.observations.shape for t in first] == [(200, 2), (200, 2)]
    assert all((a.actions == b.actions).all() and a.total == b.total for a, b in zip(first, again, strict=True))
    assert np.abs(first[0].actions).max() <= 1.0 and first[0].to_go[0] == pytest.approx(first[0].total)


def test_linear_policies_are_found_by_search():
    found, env = behaviour.find_linear("Pendulum-v1", 20, seed=0, generations=3, population=4), make("Pendulum-v1", 20)
    again = behaviour.find_linear("Pendulum-v1", 20, seed=0, generations=3, population=4)
    assert behaviour.act(env, found, 0).total == behaviour.act(env, again, 0).total
    assert np.abs(behaviour.act(env, found, 0).actions).max() > 0


def test_no_two_splits_share_a_seed():
    tasks = EpisodesTasks(EpisodesConfig(("a",)))
    seeds = [tasks.sample("a", split, i).seed for split in (*SPLITS, COLLECTED) for i in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & {
        EpisodesTasks(EpisodesConfig(("a",), seed=1)).sample("a", "train", i).seed for i in range(9)
    }


@pytest.mark.parametrize(
    "model, tasks, message",
    [
        ({"path": "nowhere/at/all"}, {}, "model folder nowhere/at/all does not exist"),
        ({"sha256": "0" * 64}, {}, "not those the job was written for"),
        ({"ntk_alpha": 2.0}, {}, "no rotary embedding"),
        ({}, {"environments": ["swimmer", "hopper"]}, "does not know hopper; it knows swimmer, pendulum"),
        ({}, {"environments": []}, "one or more different names"),
    ],
)
def test_bad_input_is_one_clear_line(control_model, model, tasks, message):
    tasks = {"source": "episodes", "environments": ["swimmer"], **tasks}
    with pytest.raises(ValueError, match=message) as error:
        Evaluator(EvaluatorConfig(ModelConfig(**{"path": str(control_model), **model}), tasks, target="control"))
    assert "\n" not in str(error.value)


def test_a_damaged_folder_is_one_clear_line(untrained, tmp_path):
    decision.save(untrained, ENVIRONMENTS, tmp_path)
    model = ModelConfig(str(tmp_path))
    loaded, environments = decision.load(model)
    assert environments == ENVIRONMENTS
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), untrained.parameters(), strict=True))
    described = (tmp_path / "environments.json").read_text()
    for text, message in (
        (described[:90], "is no JSON"),
        (described.replace("scale", "scales"), "did you mean 'scale'"),
    ):
        (tmp_path / "environments.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            decision.load(model)
    (tmp_path / "environments.json").write_text(described)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="could not be loaded"):
        decision.load(model)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="lacks weights in safetensors format"):
        decision.load(model)


def test_environments_that_are_not_there_are_one_clear_line():
    with pytest.raises(ValueError, match="environment Swimming-v5 cannot be made"):
        make("Swimming-v5")
    wrong = dataclasses.replace(ENVIRONMENTS["pendulum"], id="CartPole-v1")
    with pytest.raises(ValueError, match="observations of 4 numbers, the model was trained for 3"):
        Simulation(wrong)
