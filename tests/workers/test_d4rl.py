"""D4RL's files in their own layout: episodes, scores, training on one, and what damage says."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from workers.config import ModelConfig
from workers.control import d4rl, decision
from workers.control.environments import Simulation
from workers.control.rollout import roll_out
from workers.pretraining import control as pretrain_control


def arrays(steps: int = 250, **changes) -> dict[str, np.ndarray]:
    """What a data set of Hopper holds: an episode that fell at step 99, one cut off at 219, the rest of a third."""
    rng = np.random.default_rng(0)
    found = {
        "observations": rng.standard_normal((steps, 11)).astype(np.float32),
        "next_observations": rng.standard_normal((steps, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        "rewards": np.ones(steps, np.float32),
        "terminals": np.arange(steps) == 99,
        "timeouts": np.arange(steps) == 219,
        "infos/qpos": rng.standard_normal((steps, 6)),
    }
    return {name: array for name, array in (found | changes).items() if array is not None}


def write(file: Path, found: dict[str, np.ndarray]) -> Path:
    with h5py.File(file, "w") as store:
        for name, array in found.items():
            store[name] = array
        store["metadata/algorithm"] = np.bytes_(b"SAC")
    return file


def test_episodes_end_at_terminals_and_timeouts(tmp_path):
    found = arrays()
    episodes = d4rl.read(write(tmp_path / "hopper.hdf5", found))
    assert [len(e) for e in episodes] == [100, 120]
    assert (episodes[1].observations == found["observations"][100:220]).all()
    assert (episodes[1].actions == found["actions"][100:220]).all()
    assert episodes[0].total == 100.0 and episodes[0].to_go[:2].tolist() == [100.0, 99.0]


def test_files_without_timeouts_and_with_columns_are_read(tmp_path):
    found = arrays(timeouts=None, rewards=np.ones((250, 1), np.float32))
    assert [len(e) for e in d4rl.read(write(tmp_path / "old.hdf5", found))] == [100]


@pytest.mark.parametrize(
    "name, total, score",
    [
        ("hopper-medium-v2", 3234.3, 100.0),
        ("Hopper-v5", -20.272305, 0.0),
        ("HalfCheetah-v5", (12135.0 - 280.178953) / 2, 50.0),
        ("maze2d-umaze-dense-v1", 193.66285642381482, 100.0),
        ("antmaze-large-play-v2", 1.0, 100.0),
    ],
)
def test_the_normalised_score_is_d4rls(name, total, score):
    assert d4rl.reference(name).score(total) == pytest.approx(score)


def test_environments_that_d4rl_has_no_scores_for():
    assert d4rl.reference("Swimmer-v5") is None and d4rl.reference("Hopperlike-v5") is None


def not_finite(steps: int = 250) -> np.ndarray:
    rewards = np.ones(steps, np.float32)
    rewards[17] = np.nan
    return rewards


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rewards": None}, "the dataset 'rewards' is missing; found: actions, infos"),
        ({"actions": np.zeros((249, 3))}, r"unequal length \(observations 250, actions 249"),
        ({"rewards": not_finite()}, "rewards holds numbers that are not finite, first at step 17"),
        ({"terminals": np.zeros(250, bool), "timeouts": np.zeros(250, bool)}, "no episode ends in it"),
        ({"terminals": np.zeros(250, bool), "timeouts": None}, "no episode ends in it"),
        ({"observations": np.zeros(250)}, r"observations has the shape \(250,\), not \(steps, numbers\)"),
        ({"actions": np.zeros((250, 0))}, "actions has the shape"),
        ({"actions": np.full((250, 3), b"a")}, "not numbers"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, changes, message):
    file = write(tmp_path / "hopper.hdf5", arrays(**changes))
    with pytest.raises(ValueError, match=message) as error:
        d4rl.read(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_missing_damaged_and_truncated_files_are_one_line(tmp_path):
    whole = write(tmp_path / "whole.hdf5", arrays()).read_bytes()
    (tmp_path / "text.hdf5").write_text("no HDF5 at all")
    (tmp_path / "short.hdf5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.hdf5").write_bytes(b"")
    for name, message in (
        ("nowhere", "there is no such file"),
        ("text", "cannot be read as HDF5"),
        ("short", "cannot be read as HDF5"),
        ("empty", "cannot be read as HDF5"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            d4rl.read(tmp_path / f"{name}.hdf5")
        assert f"{name}.hdf5" in str(error.value) and "\n" not in str(error.value)


def test_a_model_is_trained_on_a_file_and_acts(tmp_path):
    file = write(tmp_path / "hopper.hdf5", arrays())
    out = tmp_path / "model"
    arguments = ["--out", str(out), "--d4rl", str(file), "--env", "Hopper-v5", "--limit", "30"]
    assert pretrain_control.main([*arguments, "--steps", "3", "--rows", "4"]) == 0
    model, environments = decision.load(ModelConfig(str(out)))
    about = environments["hopper"]
    (lived,) = roll_out(model, [Simulation(about)], [0])
    assert 1 <= lived.steps <= 30 and lived.actions.shape == (lived.steps, 3)
    assert about.normalised(lived.total) == pytest.approx(d4rl.reference("Hopper-v5").score(lived.total) / 100)


def test_a_file_of_another_environment_is_one_line(tmp_path, capsys):
    file = write(tmp_path / "hopper.hdf5", arrays())
    arguments = ["--out", str(tmp_path / "model"), "--d4rl", str(file), "--env", "Swimmer-v5"]
    assert pretrain_control.main(arguments) == 2
    said = capsys.readouterr().err
    assert "observations and actions of 11 and 3 numbers, Swimmer-v5 has 8 and 2" in said and said.count("\n") == 1
