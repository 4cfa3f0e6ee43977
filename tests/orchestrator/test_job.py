"""A whole job through the command line: what it leaves behind, that it survives, that it repeats to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from huggingface_hub import ModelCard
from matplotlib.image import imread
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from safetensors.numpy import load_file

from namm_core import Namm
from orchestrator.report.verdict import verdict
from orchestrator.tracking.registry import digest
from tests.orchestrator import ui_walk

TIMES = ("seconds", "search_seconds")


def result_of(folder: Path) -> dict:
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in TIMES}


def theta_of(folder: Path) -> np.ndarray:
    return load_file(folder / "namm" / "model.safetensors")["theta"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, smoke):
    """A smoke job that ran to its end, undisturbed, with two workers: (working folder, what it printed)."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "job.yaml").write_text(yaml.safe_dump({**smoke, "workers": {"count": 2}}))
    environment = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "evolve", "job.yaml"],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_run_folder_tells_the_whole_story(finished):
    folder, printed = finished
    run = folder / "runs" / "smoke"
    result = json.loads((run / "result.json").read_text())
    assert list(result["policies"])[:3] == ["full", "namm", "oracle"]
    kept = result["policies"]["namm"]["kept"]
    for name in ("h2o", "l2", "streaming", "random"):
        assert abs(result["policies"][name]["kept"] - kept) <= 0.01
    lines = [json.loads(line) for line in (run / "samples.jsonl").open()]
    assert len(lines) == 12 * 7
    assert {"task", "sample", "policy", "budget", "score", "kept"} <= set(lines[0])
    assert {line["split"] for line in lines} == {"heldout"}
    assert {line["task"] for line in lines} == {"residence", "topic", "resident"}
    assert len((run / "generations.jsonl").read_text().splitlines()) == 3
    for picture in ("fitness.png", "kept.png", "prompt.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    assert theta_of(run).shape == (4172,)
    card = ModelCard.load(run / "namm" / "README.md")
    assert (
        card.data.base_model == "recall-small" and f"scores **{result['policies']['namm']['mean']:.3f}**" in card.text
    )
    assert {entry.dataset_config for entry in card.data.eval_results} == {"residence", "topic", "resident"}
    assert (run / "namm" / "custom_generate" / "generate.py").is_file()
    assert "3/3" in printed and "streaming" in printed and str(run.relative_to(folder)) in printed
    assert verdict(result) in printed.replace("\n", " ") and "runs/smoke/story.html" in printed


def test_the_story_is_told_at_little_cost(finished):
    """A look at the start and at each validation, an evaluation each; the last stop's was needed for `prompt.png`."""
    run = finished[0] / "runs" / "smoke"
    story = (run / "story.html").read_text()
    data = json.loads(story.partition('id="data">')[2].partition("</script>")[0])
    assert [stop["name"] for stop in data["stops"]] == [
        "before the first", "2 of 3", "3 of 3", "the memory of the table"
    ]  # fmt: skip
    lines = [json.loads(line[9:]) for line in (run / "journal.jsonl").open()]
    looks = {line["fact"]: line["value"] for line in lines if line.get("fact", "").startswith("look ")}
    assert list(looks) == ["look 0", "look 2", "look 3"]
    result = json.loads((run / "result.json").read_text())
    assert verdict(result) in story
    assert (run / "story.html").stat().st_size < 3_000_000


def test_mlflow_tells_it_too(finished):
    folder, _ = finished
    record = json.loads((folder / "runs" / "smoke" / "mlflow.json").read_text())
    client = MlflowClient(record["uri"])
    run = client.get_run(record["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["search.population"] == "4"
    history = client.get_metric_history(record["run_id"], "fitness/mean")
    assert [metric.step for metric in history] == [1, 2, 3]
    for name in (
        "fitness_validation/score",
        "kept/layer_0",
        "search/sigma",
        "tasks/score/topic",
        "workers/tokens_per_second",
    ):
        assert name in run.data.metrics
    names = {file.path for file in client.list_artifacts(record["run_id"])}
    assert {"fitness.png", "kept.png", "prompt.png", "result.json", "namm", "story.html"} <= names
    result = json.loads((folder / "runs" / "smoke" / "result.json").read_text())
    note = run.data.tags["mlflow.note.content"]
    assert verdict(result) in note and "| namm |" in note.replace("**", "") and "runs/smoke/namm" in note
    assert run.data.tags["namm.memory"] == digest(folder / "runs" / "smoke" / "namm")
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    version = client.get_model_version_by_alias("namm-smoke", "champion")
    assert version.run_id == record["run_id"] and float(version.tags["kept"]) > 0
    place = client.get_model_version_download_uri("namm-smoke", version.version)
    got = Namm.from_pretrained(download_artifacts(place, tracking_uri=record["uri"]))
    assert np.array_equal(got.theta.numpy(), theta_of(folder / "runs" / "smoke"))


def test_two_clicks_in_mlflow_show_the_generations_the_verdict_and_the_memory(finished, chromium, tmp_path):
    """Real pages in a real browser: runs beside charts in their order, then the run's own page; from the address that
    `namm ui` prints, and from the first page."""
    folder, _ = finished
    result = json.loads((folder / "runs" / "smoke" / "result.json").read_text())
    with ui_walk.served(folder) as addresses:
        told = ui_walk.runs(chromium, addresses["all runs"], "smoke", tmp_path / "runs.png")
        assert "Evaluation runs" not in told  # that is the view for chat applications
        lines = told.splitlines()
        sections = ["fitness", "fitness_validation", "heldout/full", "kept", "search", "tasks/score", "workers"]
        assert [line for line in lines if line in sections] == sections
        assert "System metrics" in lines[lines.index("workers") :]
        pages = [ui_walk.run(chromium, "smoke", tmp_path / "run.png")]
        pages.append(ui_walk.from_the_start(chromium, addresses["all runs"], "namm", "smoke"))
        for told in pages:
            assert verdict(result) in told and "3 generations of 4 candidates" in told
            assert "runs/smoke/namm" in told and "namm-smoke" in told
            assert "Model registry" in told and "Evaluation runs" not in told
    for name in ("runs.png", "run.png"):
        assert imread(tmp_path / name).shape[1] > 1000


def test_one_worker_gives_the_same_bits_as_two(finished, namm, job_file, tmp_path):
    process = namm("evolve", job_file(workers={"count": 1}), "--json")
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result = json.loads((tmp_path / "runs" / "smoke" / "result.json").read_text())
    assert json.loads(printed) == {"verdict": verdict(result), "result": result} and "3/3" in errors
    assert result_of(tmp_path / "runs" / "smoke") == result_of(finished[0] / "runs" / "smoke")
    assert np.array_equal(theta_of(tmp_path / "runs" / "smoke"), theta_of(finished[0] / "runs" / "smoke"))


def test_two_jobs_share_a_cluster(finished, namm, job_file, tmp_path):
    """Each with a worker of its own, at the same time; the one that is the smoke job gives the smoke job's bits."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        joined = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
        job = job_file(workers={"count": 1})
        both = [namm("evolve", job, env=joined), namm("evolve", job, "name=other", "seed=1", env=joined)]
        for process in both:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        cluster.shutdown()
    runs = tmp_path / "runs"
    assert result_of(runs / "smoke") == result_of(finished[0] / "runs" / "smoke")
    assert not np.array_equal(theta_of(runs / "other"), theta_of(runs / "smoke"))


def test_killed_and_resumed_on_another_machine_it_ends_in_the_same_place(finished, namm, job_file, tmp_path):
    """kill -9 of the whole job in the middle of a generation, its folder gone; then --resume from its storage."""
    url = (tmp_path / "storage").as_uri()
    journal = tmp_path / "runs" / "smoke" / "journal.jsonl"
    process = namm("evolve", job_file(workers={"count": 2}, storage=url), start_new_session=True)
    end = time.monotonic() + 200
    while not (journal.exists() and journal.read_text().count('"policy"') >= 30):
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.05)
    time.sleep(2.0)  # storage is a second behind
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:  # Ray's own daemons: a local Ray ends with its driver
        if member.is_running():
            member.kill()
    shutil.move(tmp_path / "runs", tmp_path / "lost")
    other = tmp_path / "other"
    other.mkdir()
    again = namm("evolve", job_file(workers={"count": 2}, storage=url), cwd=other)
    _, errors = again.communicate(timeout=100)
    assert again.returncode == 2 and "holds a run: continue it with --resume" in errors
    resumed = namm("evolve", "--resume", url, cwd=other)
    printed, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    run = other / "runs" / "smoke"
    assert result_of(run) == result_of(finished[0] / "runs" / "smoke")
    assert np.array_equal(theta_of(run), theta_of(finished[0] / "runs" / "smoke"))
    text = (run / "journal.jsonl").read_text()
    before = (tmp_path / "lost" / "smoke" / "journal.jsonl").read_text()
    assert sum(line in text for line in before.splitlines()) >= 25  # what was told before was not computed again
    lines = [json.loads(line[9:]) for line in text.splitlines()]
    keys = [tuple(line[k] for k in ("policy", "task", "split", "index")) for line in lines if "policy" in line]
    assert [line["told"]["generation"] for line in lines if "told" in line] == [1, 2, 3]
    assert len(keys) == len(set(keys))  # every result once
    undisturbed = (finished[0] / "runs" / "smoke" / "journal.jsonl").read_text().count('"policy"')
    assert len(keys) == undisturbed


def test_ctrl_c_says_how_to_go_on(namm, job_file, tmp_path):
    process = namm("evolve", job_file(workers={"count": 1}), start_new_session=True)
    journal = tmp_path / "runs" / "smoke" / "journal.jsonl"
    end = time.monotonic() + 200
    while not (journal.exists() and journal.read_text().count('"policy"') >= 2):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "namm evolve --resume smoke" in printed
    again = namm("evolve", job_file(workers={"count": 1}))
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 2 and "continue it with --resume" in errors
