"""Policies with options and with a fixed size, through the command line: rows of their own, known by their label."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mlflow import MlflowClient

from namm_core import FeatureStatistics, Namm, NammConfig
from orchestrator.cli import main
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef, Unit

NARROW, FIXED = "snapkv(window=16)", "streaming(budget=0.2)"
POLICIES = "full,namm,{name: snapkv, window: 16},snapkv,{name: streaming, budget: 0.2}"
SIZES = ("--budgets", "0.5", "--samples", "3", "--validation", "3", "--timing", "1")


@pytest.fixture
def saved(tmp_path):
    """A random NAMM, in `saved` below the working folder."""
    theta = np.random.default_rng(0).normal(0.0, 0.1, 4172).astype(np.float32)
    statistics = FeatureStatistics(np.zeros(17, np.float32), np.full(17, 0.05, np.float32), 100.0)
    Namm(NammConfig(update_interval=32), theta, statistics).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_each_has_its_row_and_is_what_its_options_say(namm, job_file, tmp_path, smoke, saved):
    process = namm("evaluate", job_file(workers={"count": 1}), "--namm", "saved", "--policies", POLICIES, *SIZES)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    run = tmp_path / "runs" / "smoke-evaluate"
    result, points = (json.loads((run / name).read_text()) for name in ("result.json", "curve.json"))
    lines = [json.loads(line) for line in (run / "samples.jsonl").open()]
    own = result["own_kept"]
    assert set(result["policies"]) == {"full", "namm", NARROW, "snapkv", FIXED}
    sizes = {name: {p["budget"] for p in points if p["policy"] == name} for name in (NARROW, "snapkv", FIXED)}
    assert sizes == {NARROW: {0.5, own}, "snapkv": {0.5, own}, FIXED: {0.2}}
    (alone,) = (point for point in points if point["policy"] == FIXED)
    assert alone["level"] is None and abs(alone["kept"] - 0.2) < 0.01 and "peak_cache_bytes" in alone
    assert {json.dumps(line.get("options")) for line in lines if line["policy"] == NARROW} == {'{"window": 16}'}
    assert not any("options" in line for line in lines if line["policy"] in ("snapkv", FIXED))
    # What a worker says of them, with and without the option; the option matters.
    evaluator = Evaluator(
        EvaluatorConfig(
            ModelConfig(smoke["model"]["path"], ntk_alpha=8), smoke["tasks"], NammConfig(update_interval=32)
        )
    )
    said = {}
    for label, options in ((NARROW, {"window": 16}), ("snapkv", {})):
        rows = [line for line in lines if line["policy"] == label and line["budget"] == 0.5]
        assert len(rows) == 3
        for row in rows:
            unit = Unit(
                (PolicySpec("snapkv", budget=0.5, options=options),),
                (SampleRef(row["task"], "heldout", row["sample"]),),
            )
            ((again,),) = evaluator.evaluate(unit)
            assert (again.score, again.logprob) == (row["score"], row["logprob"])
        said[label] = [row["logprob"] for row in rows]
    assert said[NARROW] != said["snapkv"]
    for text in (printed, (run / "curve.md").read_text()):
        assert NARROW in text and FIXED in text
    record = json.loads((run / "mlflow.json").read_text())
    metrics = MlflowClient(record["uri"]).get_run(record["run_id"]).data.metrics
    assert metrics["heldout/snapkv_window_16/0.5/kept"] == next(
        p["kept"] for p in points if (p["policy"], p["budget"]) == (NARROW, 0.5)
    )
    again = namm("evaluate", "--resume", "smoke-evaluate", "--timing", "0")  # read from its own file, with the options
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert json.loads((run / "result.json").read_text())["policies"] == result["policies"]


@pytest.mark.parametrize(
    "policies, message",
    [
        ("{name: snapkv, windw: 16}", "unknown option 'windw'; did you mean 'window'"),
        ("{name: snapkv, kernel: 4}", "kernel must be odd"),
        ("{name: snapkv, window: wide}", "window: expected int, found 'wide'"),
        ("{name: full, budget: 0.2}", "full takes no budget"),
        ("{name: namm, budget: 0.2}", "namm takes no options and no budget"),
        ("{name: h2o, budget: 1.5}", "budget must lie between 0 and 1, not 1.5"),
        ("h2o,snapkv,h2o", "policies names h2o twice"),
        ("{name: snapkv", "is no list of policies"),
    ],
)
def test_what_is_wrong_is_one_line(job_file, tmp_path, monkeypatch, capfd, saved, policies, message):
    """Of an evaluation and of a job's table, before anything is written."""
    monkeypatch.chdir(tmp_path)
    job = job_file()
    assert main(["evaluate", job, "--namm", "saved", "--policies", policies]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    if "no list" not in message:
        assert main(["evolve", job, f"evaluation.policies=[full, namm, {policies}]"]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert message in line or "namm twice" in line
    assert not (tmp_path / "runs").exists()


def test_a_table_without_what_it_compares_with_is_refused(job_file, tmp_path, monkeypatch, capfd):
    """Before the search, and not after it."""
    monkeypatch.chdir(tmp_path)
    for policies, missing in (("[full, h2o]", "namm"), ("[namm, h2o]", "full")):
        assert main(["evolve", job_file(), f"evaluation.policies={policies}"]) == 2
        assert f"evaluation.policies must name {missing}" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
