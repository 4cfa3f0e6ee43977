"""A job with budgets, from a rule, in two stages, through the command line: what it leaves behind, and that it repeats
to the bit when it is killed and resumed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from namm_core.config import NammConfig, from_mapping
from namm_core.scoring import rules
from orchestrator.evolution.stage import theta_digest

TASKS = ["residence", "topic"]
STAGES = [
    {"train": TASKS, "name": "linear", "generations": 2, "part": "linear", "variant": "full", "sigma0": 0.3},
    {"train": TASKS, "name": "all", "generations": 1},
]
CHANGES = {
    "name": "sizes",
    "stages": STAGES,
    "memory": {
        "update_interval": 64,
        "scorer": "linear",
        "selection": "budget",
        "features": ["key_similarity", "key_norm", "age"],
        "depths": 3,  # a share for each of the small model's six heads
        "heads": 2,
        "sinks": 2,
        "recent": 4,
    },
    "start": {"rule": "keydiff"},
    "fitness": {
        "samples": 2,
        "statistics_samples": 2,
        "budgets": [0.1, 0.3, 0.5],
        "mix": {"probability": 0.7, "score": 0.3},
    },
    "evaluation": {"samples": 6, "budget": 0.2, "policies": ["full", "namm", "keydiff"]},
    "workers": {"count": 2},
}


@pytest.fixture
def sizes(tmp_path, smoke) -> str:
    """The smoke job with these changes, and without what its stages say."""
    path = tmp_path / "job.yaml"
    kept = {name: value for name, value in smoke.items() if name not in ("train", "generations")}
    path.write_text(yaml.safe_dump({**kept, **CHANGES}))
    return str(path)


def result_of(run: Path) -> dict:
    result = json.loads((run / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in ("seconds", "search_seconds")}


def test_from_a_rule_over_budgets_in_two_stages_and_again_after_a_kill(namm, sizes, tmp_path):
    process = namm("evolve", sizes)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    run = tmp_path / "runs" / "sizes"
    result, theta = result_of(run), load_file(run / "namm" / "model.safetensors")["theta"]
    assert "start: keydiff, validation fitness" in printed and result["threshold"] is None
    start, (linear, whole) = result["start"], result["stages"]
    assert start["rule"] == "keydiff" and start["validation_fitness"] <= linear["validation_fitness"]
    assert linear["validation_fitness"] <= whole["validation_fitness"]
    assert linear["searched"] == len(theta) == 17 and linear["sigma_start"] == 0.3
    records = [json.loads(line) for line in (run / "generations.jsonl").open()]
    memory = from_mapping(NammConfig, CHANGES["memory"])
    assert records[0]["start"] == linear["start"] == theta_digest(rules.start(memory, "keydiff"))
    rows = result["policies"]
    assert 0.15 < rows["namm"]["kept"] < 0.25 and abs(rows["keydiff"]["kept"] - rows["namm"]["kept"]) < 0.01
    lines = [json.loads(line[9:]) for line in (run / "journal.jsonl").open()]
    trained = [line for line in lines if line.get("split") == "train"]
    for index in {line["index"] for line in trained}:
        kept = {line["kept"] for line in trained if (line["task"], line["index"]) == (TASKS[0], index)}
        sizes_kept = sorted(kept - {1.0})  # but for shares that are no whole tokens
        assert 1.0 in kept and sizes_kept[-1] - sizes_kept[0] < 0.02  # one size for all candidates, and the full cache
    asked = len([line for line in lines if "policy" in line])

    run.rename(tmp_path / "whole")
    again = namm("evolve", sizes, start_new_session=True)
    end = time.monotonic() + 200
    while not ((run / "journal.jsonl").exists() and (run / "journal.jsonl").read_text().count('"policy"') >= 30):
        assert again.poll() is None and time.monotonic() < end, again.stderr.read()
        time.sleep(0.02)
    family = psutil.Process(again.pid).children(recursive=True)
    again.kill()
    for member in family:  # Ray's own daemons: a local Ray ends with its driver
        if member.is_running():
            member.kill()
    assert not (run / "result.json").exists()
    resumed = namm("evolve", "--resume", "sizes")
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert result_of(run) == result
    assert np.array_equal(load_file(run / "namm" / "model.safetensors")["theta"], theta)
    lines = [json.loads(line[9:]) for line in (run / "journal.jsonl").open()]
    keys = [tuple(line[k] for k in ("policy", "task", "split", "index")) for line in lines if "policy" in line]
    assert len(keys) == len(set(keys)) == asked
