"""`namm evaluate` through the command line: its files agree with each other, it survives, it works on another model."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from scipy import stats

from namm_core import FeatureStatistics, Namm, NammConfig
from namm_core.config import from_mapping
from orchestrator import cli, spec
from orchestrator.evaluation.calibration import LOOKS, TOLERANCE, Calibration
from orchestrator.evaluation.curve_picture import apart
from orchestrator.evaluation.curve_spec import EvaluateSpec, checked
from orchestrator.evaluation.sizes import shifted
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef

BUDGETS = (0.3, 0.6)
POLICIES = "oracle,h2o,streaming"
ASKED = ("--budgets", "0.3,0.6", "--samples", "6", "--validation", "6", "--policies", POLICIES)


def some_namm(seed: int = 0) -> Namm:
    """Random, and of another update interval than the job's."""
    rng = np.random.default_rng(seed)
    statistics = FeatureStatistics(np.zeros(17, np.float32), np.full(17, 0.05, np.float32), 100.0)
    return Namm(NammConfig(update_interval=32), rng.normal(0.0, 0.1, 4172).astype(np.float32), statistics)


def loaded(folder: Path) -> tuple[list[dict], list[dict], dict]:
    """samples.jsonl, curve.json and result.json of an evaluation."""
    samples = [json.loads(line) for line in (folder / "samples.jsonl").open()]
    return samples, *(json.loads((folder / name).read_text()) for name in ("curve.json", "result.json"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, smoke):
    """An evaluation that ran to its end, undisturbed: (working folder, what it printed)."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "job.yaml").write_text(yaml.safe_dump({**smoke, "workers": {"count": 2}}))
    some_namm().save_pretrained(folder / "runs" / "smoke" / "namm")
    environment = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "evaluate", "job.yaml", *ASKED, "--timing", "2", "seed=0"],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_folder_holds_every_policy_at_every_size(evaluated):
    folder, printed = evaluated
    run = folder / "runs" / "smoke-evaluate"
    samples, curve, result = loaded(run)
    own = result["own_kept"]
    wanted = {("full", None), ("oracle", None), ("namm", None)} | {("namm", b) for b in BUDGETS}
    wanted |= {(name, b) for name in ("h2o", "streaming") for b in (*BUDGETS, own)}
    assert {(p["policy"], p["budget"]) for p in curve} == wanted and len(curve) == len(wanted)
    assert {(s["policy"], s["budget"]) for s in samples} == wanted and len(samples) == 6 * len(wanted)
    assert {s["split"] for s in samples} == {"heldout"}
    assert yaml.safe_load((run / "evaluate.yaml").read_text())["job"]["memory"]["update_interval"] == 32
    for point in curve:
        # The tail behind the last update (264 tokens, every 32) is at most 8 tokens: any of these can be had.
        if point["policy"] in ("h2o", "streaming"):
            assert abs(point["kept"] - point["budget"]) <= 0.01
        elif point["policy"] == "namm" and point["budget"]:
            assert abs(point["kept"] - point["budget"]) <= 0.05  # found on six samples, measured on six others
            assert abs(point["validation_kept"] - point["budget"]) <= TOLERANCE
        assert point["prefill_tokens_per_second"] > 0 and point["decode_tokens_per_second"] > 0
    at = {(p["policy"], p["budget"]): p for p in curve}
    full, small = at["full", None], at["streaming", 0.3]
    assert full["peak_cache_bytes"] >= full["samples"] and full["peak_cache_ratio"] == full["decode_ratio"] == 1.0
    assert small["peak_kv_bytes"] < 0.6 * full["peak_kv_bytes"]
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    text = (run / "curve.md").read_text()
    assert text.count("| `streaming` |") == 1 + 3 + 3 and "\n\n\\* the NAMM as it is. 6 held-out" in text
    # Printed into a pipe, and none too wide.
    assert f"{own:.3f}*" in printed and "6 held-out samples" in printed and "tok/s" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_the_points_follow_from_the_samples(evaluated):
    """Every number of the curve once more, from samples.jsonl, by another road."""
    samples, curve, result = loaded(evaluated[0] / "runs" / "smoke-evaluate")
    own = result["own_kept"]

    def scores(policy, budget):
        mine = {(s["task"], s["sample"]): s["score"] for s in samples if (s["policy"], s["budget"]) == (policy, budget)}
        return np.array([mine[key] for key in sorted(mine)])

    def same(found, low_high, differences):
        assert math.isclose(found, differences.mean(), abs_tol=1e-12)
        if differences.std() > 0:
            bounds = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
            assert np.allclose(low_high, bounds, atol=1e-9)

    seen = {"trained": ["residence", "topic"], "heldout": ["resident"]}

    for point in curve:
        mine = [s for s in samples if (s["policy"], s["budget"]) == (point["policy"], point["budget"])]
        tasks = {t: np.mean([s["score"] for s in mine if s["task"] == t]) for t in {s["task"] for s in mine}}
        assert point["tasks"] == pytest.approx(tasks) and point["score"] == pytest.approx(np.mean([*tasks.values()]))
        assert point["kept"] == pytest.approx(np.mean([s["kept"] for s in mine]))
        values = scores(point["policy"], point["budget"])
        same(point["difference"], point["difference_interval"], values - scores("full", None))
        if point["policy"] in ("h2o", "streaming"):
            namm = scores("namm", None if point["budget"] == own else point["budget"])
            same(point["namm_difference"], point["namm_difference_interval"], namm - values)
        # The same, for kinds that evolution trained on and for those that it never saw.
        assert set(point["groups"]) == set(seen)
        keys = sorted({(s["task"], s["sample"]) for s in mine})
        for group, kinds in seen.items():
            part, rows = point["groups"][group], [i for i, (task, _) in enumerate(keys) if task in kinds]
            assert part["kinds"] == kinds and part["samples"] == len(rows) > 0
            assert part["score"] == pytest.approx(np.mean([tasks[kind] for kind in kinds]))
            if point["policy"] != "full":
                same(part["difference"], part["difference_interval"], (values - scores("full", None))[rows])
            if point["policy"] in ("h2o", "streaming"):
                same(part["namm_difference"], part["namm_difference_interval"], (namm - values)[rows])
    assert abs(np.mean([s["kept"] for s in samples if s["policy"] == "namm" and s["budget"] is None]) - own) < 1e-4
    rows = result["policies"]
    assert set(rows) == {"full", "namm", "oracle", "h2o", "streaming"}
    for name in ("h2o", "streaming"):
        assert abs(rows[name]["kept"] - rows["namm"]["kept"]) <= 0.01 and rows[name]["budget"] == own


def test_mlflow_has_it_too(evaluated):
    run = evaluated[0] / "runs" / "smoke-evaluate"
    record = json.loads((run / "mlflow.json").read_text())
    client = MlflowClient(record["uri"])
    metrics = client.get_run(record["run_id"]).data.metrics
    for point in json.loads((run / "curve.json").read_text()):
        at = "" if point["budget"] is None else f"/{point['budget']:g}"
        assert metrics[f"heldout/{point['policy']}{at}/score"] == point["score"]
    names = {file.path for file in client.list_artifacts(record["run_id"])}
    assert {"curve.png", "curve.json", "curve.md", "result.json", "samples.jsonl"} <= names


def test_killed_and_resumed_it_gives_the_same_scores(evaluated, namm, job_file, tmp_path, monkeypatch, capfd):
    saved = str(evaluated[0] / "runs" / "smoke" / "namm")
    command = ("evaluate", job_file(workers={"count": 2}), "--namm", saved, *ASKED, "--timing", "0", "--name", "other")
    process = namm(*command, start_new_session=True)
    journal = tmp_path / "runs" / "other" / "journal.jsonl"
    end = time.monotonic() + 200
    while not (journal.exists() and journal.read_text().count('"heldout"') >= 12):
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    for member in family:  # Ray's own daemons: a local Ray ends with its driver
        if member.is_running():
            member.kill()
    monkeypatch.chdir(tmp_path)
    assert cli.main(list(command)) == 2 and "continue it with --resume" in capfd.readouterr().err
    resumed = namm("evaluate", "--resume", "other")
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    samples, curve, result = loaded(tmp_path / "runs" / "other")
    before, points, undisturbed = loaded(evaluated[0] / "runs" / "smoke-evaluate")
    assert samples == before
    assert result["policies"] == undisturbed["policies"] and result["evaluations"] == undisturbed["evaluations"]
    fields = ("policy", "budget", "kept", "score", "tasks", "difference_interval", "samples")
    assert [[p[f] for f in fields] for p in curve] == [[p[f] for f in fields] for p in points]
    lines = [json.loads(line[9:]) for line in journal.read_text().splitlines()]
    keys = [tuple(line[k] for k in ("policy", "task", "split", "index")) for line in lines if "policy" in line]
    assert len(keys) == len(set(keys)) == result["evaluations"]  # every result once


def test_on_a_model_that_it_was_not_evolved_on(namm, job_file, tmp_path, smoke, small_model):
    """Another small random Llama: the NAMM's statistics as they are, and those of the new model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)
    for part in (LlamaForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path / "other")
    memory = some_namm()
    memory.save_pretrained(tmp_path / "saved")
    asked = ("--model", "other", "--namm", "saved", "--budgets", "0.4", "--samples", "3", "--timing", "0")
    process = namm("evaluate", job_file(workers={"count": 1}), *asked, "--policies", "h2o", "--validation", "3")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    run = tmp_path / "runs" / "smoke-evaluate"
    samples, curve, result = loaded(run)
    both = ("namm", "namm-statistics-anew")
    assert {p["policy"] for p in curve} == {"full", "h2o", *both}
    assert all({p["budget"] for p in curve if p["policy"] == name} == {None, 0.4} for name in both)
    # Both are what a worker says of them in one process: one with the saved statistics, one with the model's.
    evaluator = Evaluator(EvaluatorConfig(ModelConfig(str(tmp_path / "other")), smoke["tasks"], memory.config))
    prompts = [SampleRef(task, "train", i) for task in smoke["train"] for i in range(2)]
    given = memory.statistics
    for name, statistics in zip(
        both, [(given.mean, given.var, given.count), evaluator.statistics(prompts)], strict=True
    ):
        rows = [s for s in samples if s["policy"] == name and s["budget"] is None]
        policy = Namm(memory.config, memory.theta, FeatureStatistics(*statistics))
        for row in rows:
            assert row["kept"] == pytest.approx(kept_by(evaluator, policy, row), abs=1e-6)
    assert len({round(p["kept"], 6) for p in curve if p["policy"] in both and p["budget"] is None}) == 2


def test_a_memory_with_a_budget_is_given_each_size(namm, job_file, tmp_path):
    """Nothing is shifted; the main table stands at 0.3, beside the other policies' 0.3; its job was for thresholds."""
    config = NammConfig(update_interval=32, selection="budget", over="layer", sinks=4)
    Namm(config, some_namm().theta, some_namm().statistics).save_pretrained(tmp_path / "saved")
    job = job_file(workers={"count": 1}, evaluation={"kept_at_most": 0.5}, start={"bias": 0.1})
    asked = ("--namm", "saved", "--budgets", "0.3,0.6", "--samples", "3", "--timing", "1", "--policies", "h2o")
    process = namm("evaluate", job, *asked)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    samples, curve, result = loaded(tmp_path / "runs" / "smoke-evaluate")
    wanted = {("full", None), *((name, size) for name in ("namm", "h2o") for size in (0.3, 0.6))}
    assert {(p["policy"], p["budget"]) for p in curve} == wanted and len(curve) == len(wanted)
    assert result["own_kept"] == result["reference_size"] == 0.3 and "look" not in printed
    for point in curve:
        assert point["budget"] is None or abs(point["kept"] - point["budget"]) <= 0.01
        assert "shift" not in point and point["over"] == {"namm": "layer", "h2o": "head", "full": None}[point["policy"]]
    assert {name: entry["budget"] for name, entry in result["policies"].items()} == {
        "full": None,
        "namm": 0.3,
        "h2o": 0.3,
    }
    again = namm("evaluate", "--resume", "smoke-evaluate", "--size", "0.6", "--timing", "0", "--json")
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    _, points, result = loaded(tmp_path / "runs" / "smoke-evaluate")
    assert json.loads(printed) == {"result": result, "points": points} and "h2o" in errors
    assert result["own_kept"] == 0.6 and result["policies"]["namm"]["budget"] == 0.6


def test_a_job_for_a_budget_evaluates_a_memory_with_a_threshold_too(job_file, tmp_path):
    """What a job says of how a memory is evolved says nothing of the memory that is evaluated."""
    memory = {"selection": "budget", "update_interval": 64, "features": ["age", "key_norm"]}
    start, sizes = {"rule": "l2"}, {"fitness": {"budgets": [0.2]}, "evaluation": {"budget": 0.2}}
    job = spec.read(job_file(memory=memory, start=start, **sizes))
    some_namm().save_pretrained(tmp_path / "saved")
    found, _ = checked(EvaluateSpec(job, str(tmp_path / "saved"), ()))
    assert found.job.memory == some_namm().config and found.reference is None
    Namm(job.memory).save_pretrained(tmp_path / "budget")
    found, _ = checked(EvaluateSpec(job, str(tmp_path / "budget"), ()))
    assert found.job.memory == job.memory and found.reference == 0.2
    again = spec.plain(found)
    assert from_mapping(EvaluateSpec, again) == found  # as it goes on from its own file


def kept_by(evaluator: Evaluator, policy: Namm, row: dict) -> float:
    """Kept fraction right after the prompt, through a plain forward call."""
    import torch

    from namm_core import MemoryCache

    ids = torch.from_numpy(evaluator.target.sample(SampleRef(row["task"], row["split"], row["sample"])).ids).long()[
        None
    ]
    with MemoryCache(evaluator.target.model, policy) as cache, torch.inference_mode():
        evaluator.target.model(ids, past_key_values=cache)
        return float(cache.kept_counts().double().mean() / ids.shape[1])


class Scores:
    """Kept fraction of a memory whose scores are known: real, monotone, with a tail that no shift can forget."""

    def __init__(self, scores: np.ndarray, tail: float = 0.02) -> None:
        self.scores, self.tail, self.looks = scores, tail, 0

    def __call__(self, shift: float) -> float:
        self.looks += 1
        return self.tail + (1.0 - self.tail) * float((self.scores - shift >= 0).mean())


DRAWS = np.random.default_rng(7).normal(size=20_000)
HEAVY = np.random.default_rng(8).standard_t(2, size=20_000)


@pytest.mark.parametrize(
    "scores",
    [DRAWS, 0.01 * DRAWS, 10 * DRAWS + 5, 0.3 * DRAWS + 0.1, HEAVY, np.exp(DRAWS) - 0.5],
    ids=["normal", "narrow", "wide", "evolved", "heavy", "skewed"],
)
def test_calibration_finds_each_size_with_few_looks(scores):
    curve = Scores(scores)
    search = Calibration(curve)
    budgets = (0.1, 0.2, 0.3, 0.5, 0.75)
    for budget, shift in search.shifts(budgets).items():
        assert abs(curve(shift) - budget) <= TOLERANCE
    assert search.known[0.0] == curve(0.0)
    assert len(search.known) <= 1 + 4 * len(budgets)  # shared: fewer than each fraction might take


def test_calibration_ends_at_the_nearest_where_a_size_cannot_be_had():
    curve = Scores(np.where(DRAWS > 0, 2.0, -2.0), tail=0.2)  # two scores alone: three sizes
    found = {budget: curve(shift) for budget, shift in Calibration(curve).shifts((0.1, 0.55, 0.9)).items()}
    assert found[0.1] == 0.2 and found[0.9] == 1.0 and 0.55 < found[0.55] < 0.65
    assert curve.looks <= 1 + 3 * LOOKS + 3


def test_a_shift_changes_the_threshold_alone():
    """Scores fall by the shift, all of them, and theta is otherwise what it was."""
    import torch

    memory = some_namm()
    theta = memory.theta.numpy()
    raised = shifted(PolicySpec("namm", theta=theta.copy()), 0.25).theta
    assert np.array_equal(raised[:-1], theta[:-1])
    attention, positions = torch.rand(1, 2, 32, 64), torch.arange(64).expand(1, 2, 64)
    before, after = (Namm(memory.config, t).step(attention, positions).scores for t in (theta, raised))
    assert torch.allclose(before - after, torch.full_like(before, 0.25), atol=1e-5)


def test_labels_stand_apart():
    places = apart([0.1, 0.5, 0.5, 0.51, 0.99, 1.0, 1.0], 0.05)
    assert min(np.diff(places)) >= 0.05 - 1e-9 and places[0] == 0.1 and max(places) <= 1.0
    assert np.mean(places[1:4]) == pytest.approx(np.mean([0.5, 0.5, 0.51]))


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "smoke/namm does not exist: evolve a NAMM first"),
        (["--namm", "job"], "config.json is missing"),
        (["--namm", "saved", "--policies", "h2o,h20"], "unknown policy 'h20'"),
        (["--namm", "saved", "--budgets", "0.5,1.5"], "between 0 and 1, not 1.5"),
        (["--namm", "saved", "--samples", "2"], "samples must be at least 3"),
        (["--namm", "saved", "--model", "nowhere"], "model folder nowhere does not exist"),
        (["--namm", "saved", "memory.update_interval=64"], "memory is the NAMM's own"),
        (["--namm", "saved", "--budgets", "half"], "are no fractions"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capfd, job_file, more, message):
    monkeypatch.chdir(tmp_path)
    some_namm().save_pretrained("saved")
    Path("job").mkdir()
    status = cli.main(["evaluate", job_file(), *more])
    (line,) = capfd.readouterr().err.splitlines()
    assert status == 2 and message in line
    assert not Path("runs").exists()


def test_a_run_that_does_not_exist(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "nothing"]) == 2
    assert "no run 'nothing'" in capfd.readouterr().err
    assert cli.main(["evaluate", "nothing.yaml"]) == 2
    assert "nothing.yaml: cannot be read" in capfd.readouterr().err
