"""A job of three stages through the command line: what it leaves behind, and where each stage begins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from orchestrator.evolution.stage import theta_digest

ROOT = Path(__file__).parent.parent.parent


def test_three_stages_end_to_end(namm, tmp_path):
    overrides = [
        f"model.path={ROOT / 'models' / 'recall-small'}",
        f"tasks.path={ROOT / 'configs' / 'longbench-recall'}",
    ]
    overrides += ["evaluation={samples: 15, policies: [full, namm]}"]
    overrides += [f"stages.{i}.generations={count}" for i, count in enumerate((2, 1, 1))]
    process = namm("evolve", str(ROOT / "configs" / "stages-smoke.yaml"), *overrides)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    run = tmp_path / "runs" / "stages-smoke"
    result = json.loads((run / "result.json").read_text())
    records = [json.loads(line) for line in (run / "generations.jsonl").open()]
    stages = result["stages"]
    assert [(s["name"], s["train"], s["generations"]) for s in stages] == [
        ("one", ["residence"], 2),
        ("two", ["residence", "topic"], 1),
        ("three", ["residence", "topic", "passkey"], 1),
    ]
    exported = [
        {name: load_file(run / "stages" / s["name"] / name / "model.safetensors") for name in ("namm", "mean")}
        for s in stages
    ]
    for before, after, files in zip(stages, stages[1:], exported, strict=False):
        first, last = records[after["first"] - 1], records[after["first"] - 2]
        assert first["stage"] == after["name"] and last["stage"] == before["name"] and last["ended"] == "stage"
        assert first["start"] == last["theta"] == theta_digest(files["mean"]["theta"]) == after["start"]
    statistics = [{k: v for k, v in made.items() if k != "theta"} for pair in exported for made in pair.values()]
    assert statistics[0] and all(
        np.array_equal(one[name], statistics[0][name]) for one in statistics for name in statistics[0]
    )
    assert np.array_equal(load_file(run / "namm" / "model.safetensors")["theta"], exported[-1]["namm"]["theta"])
    assert result["trained_tasks"] == ["residence", "topic", "passkey"] and result["generations"] == 4
    assert all(score >= 0.2 for score in result["base"].values()), "the full cache should answer every task"
    assert result["racing"]["saved"] == sum(r["saved"] for r in records)
    assert result["asked"] == sum(r["asked"] for r in records)
    assert all(len(look["validation_interval"]) == 2 for look in result["validation"])
    for text in ("one ended: its 2 generations are done", "raced: ", "3 stages"):
        assert text in printed
