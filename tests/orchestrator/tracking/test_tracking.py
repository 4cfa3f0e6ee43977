"""What a tracker leaves in a real MLflow store, and that it never makes a generation wait."""

import dataclasses
import json
import logging
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from orchestrator.tracking.redaction import without_secrets
from orchestrator.tracking.store import UI_ENVIRONMENT, check_mlflow, default_store, ui_command
from orchestrator.tracking.tracker import Tracker, flattened, git_tags

ROOT = Path(__file__).resolve().parents[3]
BLOCKS_AT_MOST = 5.0  # seconds, of one generation


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return default_store(tmp_path_factory.mktemp("store") / "runs")


def steps(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, name))


def seconds(call, *arguments) -> float:
    start = time.monotonic()
    call(*arguments)
    return time.monotonic() - start


def test_a_job_is_one_run_with_its_parameters_generations_files_and_end(store, tmp_path):
    tracker = Tracker(
        store,
        "recall",
        "first",
        {"search": {"sigma0": 0.065, "seeds": [1, 2]}, "model": None},
        {"kind": "smoke"},
    )
    for step in range(3):
        tracker.generation(step, {"fitness/mean": step / 2, "kept/layer 0": 0.5})
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "namm").mkdir()
    (tmp_path / "namm" / "config.json").write_text("{}")
    tracker.artifact(tmp_path / "result.json")
    tracker.artifact(tmp_path / "namm", "namm")
    tracker.metrics_final({"difference": 0.05})
    assert tracker.finish()
    client = MlflowClient(store)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "first" and run.info.end_time
    assert run.data.params == {"search.sigma0": "0.065", "search.seeds": "[1, 2]", "model": "None"}
    assert run.data.tags["kind"] == "smoke"
    assert steps(store, tracker.run_id, "fitness/mean") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert run.data.metrics["difference"] == 0.05
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["namm", "result.json"]
    assert [file.path for file in client.list_artifacts(tracker.run_id, "namm")] == ["namm/config.json"]
    artifacts = Path(store.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert run.info.artifact_uri.startswith(artifacts.as_uri())


def test_a_generation_is_one_moment_in_the_store_however_many_metrics_it_has(store):
    tracker = Tracker(store, "recall", "wide")
    blocked = seconds(tracker.generation, 7, {f"kept/{layer}": 0.5 for layer in range(1500)})
    assert tracker.finish()
    assert blocked < 1
    client = MlflowClient(store)
    points = [client.get_metric_history(tracker.run_id, f"kept/{layer}") for layer in (0, 999, 1499)]
    assert len({(point.timestamp, point.step) for (point,) in points}) == 1


def test_system_metrics_are_sampled_also_in_a_job_of_seconds(store):
    tracker = Tracker(store, "recall", "short")
    assert tracker.finish()
    metrics = MlflowClient(store).get_run(tracker.run_id).data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert "system/cpu_utilization_percentage" in metrics


def test_system_metrics_can_be_switched_off(store):
    tracker = Tracker(store, "recall", "quiet", system_metrics=False)
    tracker.generation(1, {"x": 1.0})
    assert tracker.finish()
    assert MlflowClient(store).get_run(tracker.run_id).data.metrics == {"x": 1.0}


def test_an_experiment_is_of_the_kind_that_shows_runs_and_charts(store):
    """A new one, and one that there was; a kind that somebody chose stays."""
    client = MlflowClient(store)
    client.create_experiment("there already")
    client.create_experiment("chosen", tags={"mlflow.experimentKind": "genai_development"})
    for name, kind in {
        "brand new": "custom_model_development",
        "there already": "custom_model_development",
        "chosen": "genai_development",
    }.items():
        assert Tracker(store, name, "first").finish()
        assert client.get_experiment_by_name(name).tags["mlflow.experimentKind"] == kind


def test_two_trackers_in_one_process_do_not_mix(store, tmp_path):
    other = default_store(tmp_path)
    first, second = Tracker(store, "recall", "a"), Tracker(other, "recall", "b")
    for step in range(5):
        first.generation(step, {"x": 1.0})
        second.generation(step, {"x": 2.0})
    assert first.finish() and second.finish("FAILED")
    assert steps(store, first.run_id, "x") == [(step, 1.0) for step in range(5)]
    assert steps(other, second.run_id, "x") == [(step, 2.0) for step in range(5)]
    assert MlflowClient(other).get_run(second.run_id).info.status == "FAILED"


def test_a_resumed_run_has_every_generation_once(store):
    first = Tracker(store, "recall", "resumed", {"workers": 1, "seed": 3})
    for step in range(4):
        first.generation(step, {"fitness": float(step)})
    assert first.finish("KILLED")
    again = Tracker(store, "recall", "resumed", {"workers": 2, "seed": 3, "new": 1}, run_id=first.run_id)
    assert again.run_id == first.run_id and again.experiment_id == first.experiment_id
    assert MlflowClient(store).get_run(first.run_id).info.status == "RUNNING"
    for step in range(2, 6):
        again.generation(step, {"fitness": float(step)})
    assert again.finish()
    assert steps(store, first.run_id, "fitness") == [(step, float(step)) for step in range(6)]
    run = MlflowClient(store).get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"workers": "1", "seed": "3", "new": "1"}
    assert run.data.tags["resumed.workers"] == "2"
    samples = steps(store, first.run_id, "system/cpu_utilization_percentage")
    assert [step for step, _ in samples] == list(range(len(samples)))


def test_a_run_that_was_deleted_is_replaced_aloud(store, caplog):
    first = Tracker(store, "recall", "gone")
    assert first.finish()
    MlflowClient(store).delete_run(first.run_id)
    for lost in (first.run_id, "0" * 32):
        again = Tracker(store, "recall", "gone", run_id=lost)
        assert again.run_id != lost
        assert lost in caplog.text
        assert again.finish()


def test_values_that_are_no_numbers_are_left_out_aloud_and_the_rest_is_kept(store, caplog):
    tracker = Tracker(store, "recall", "nan")
    for step in range(3):
        tracker.generation(step, {"bad": math.nan, "worse": -math.inf, "good": 1.0})
    assert tracker.finish()
    assert set(MlflowClient(store).get_run(tracker.run_id).data.metrics) >= {"good"}
    assert not {"bad", "worse"} & set(MlflowClient(store).get_run(tracker.run_id).data.metrics)
    assert caplog.text.count("metric bad is nan") == 1


def test_a_message_that_is_refused_does_not_hold_up_those_behind_it(store, caplog, tmp_path):
    tracker = Tracker(store, "recall", "refused", {"x" * 300: "y" * 9000, "": 1}, {"": "empty"})
    tracker.artifact(tmp_path / "nowhere.png")
    tracker.generation(0, {"kept/task: a@b//../c": 1.0})
    assert tracker.finish()
    assert "nowhere.png" in caplog.text
    run = MlflowClient(store).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["kept/task: a_b/c"] == 1.0
    assert len(run.data.params["x" * 250]) == 6000


def test_a_locked_store_blocks_nothing_and_gets_all_of_it_later(store):
    tracker = Tracker(store, "recall", "locked")
    assert tracker.flush()
    lock = sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        assert max(seconds(tracker.generation, step, {"x": 1.0}) for step in range(20)) < 0.1
        time.sleep(1)
        assert tracker.pending > 0
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert tracker.finish()
    assert [step for step, _ in steps(store, tracker.run_id, "x")] == list(range(20))


def test_no_secret_reaches_the_store(store):
    @dataclasses.dataclass
    class Service:
        url: str = "redis://me:hidden1@host:6379/0"
        password: str = "hidden2"

    params = {
        "redis": Service(),
        "hub": {"hfToken": "hidden3", "api_key": "hidden4", "mirrors": ["https://hidden5@host"]},
        "deep": [{"list": [{"secret": "hidden6"}]}],
        "model": {"tokenizer": "words", "max_tokens": 5, "eos_token": "<end>", "key": "shown"},
    }
    tracker = Tracker(store, "recall", "secrets", params, {"origin": "https://hidden7:x@host/repository"})
    tracker.tag("later", "http://hidden8:y@host")
    assert tracker.finish()
    run = MlflowClient(store).get_run(tracker.run_id)
    sent = json.dumps([run.data.params, run.data.tags])
    assert "hidden" not in sent
    assert run.data.params["redis.url"] == "redis://***@host:6379/0"
    assert run.data.params["model.tokenizer"] == "words" and run.data.params["model.max_tokens"] == "5"
    assert run.data.params["model.eos_token"] == "<end>" and run.data.params["model.key"] == "shown"
    assert without_secrets({"token": None, "password": ""}) == {"token": None, "password": ""}


def test_nested_parameters_become_dotted_names():
    nested = {"a": {"b": {"c": 1}, "d": []}, "e": {}, "f": (1, {"g": True})}
    assert flattened(nested) == {"a.b.c": "1", "a.d": "[]", "e": "{}", "f": '[1, {"g": true}]'}


def test_the_revision_is_that_of_this_clone():
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    found = subprocess.run(git, capture_output=True, text=True)
    if found.returncode:
        assert git_tags() == {}
    else:
        assert git_tags()["mlflow.source.git.commit"] == found.stdout.strip()


def test_a_store_that_cannot_be_used_is_one_line(store, tmp_path):
    broken = tmp_path / "mlflow.db"
    broken.write_bytes(b"SQLite format 3\0" + b"broken" * 100)
    assert Tracker(store, "withdrawn", "x").finish()
    client = MlflowClient(store)
    client.delete_experiment(client.get_experiment_by_name("withdrawn").experiment_id)
    for uri, reason in (f"sqlite:///{broken}", "not a database"), (store, "was deleted"):
        with pytest.raises(ValueError, match=reason) as error:
            Tracker(uri, "withdrawn", "y")
        assert "\n" not in str(error.value)


def test_the_head_node_needs_no_torch_to_track():
    code = "import sys, orchestrator.tracking.store, orchestrator.tracking.tracker\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


class Server:
    """A real `mlflow server` of its own process group, on a port that stays the same from start to start."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.command = ui_command(default_store(folder), port)
        self.process = None

    def start(self) -> None:
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, **UI_ENVIRONMENT},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        check_mlflow(self.url, patience=120)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    try:
        server.start()
        yield server
    finally:
        if server.process.poll() is None:
            server.signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_server_that_is_stopped_or_killed_gets_everything_once(server, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    tracker = Tracker(server.url, "recall", "outage", {"a": 1})
    blocked = [seconds(tracker.generation, 0, {"x": 0.0})]
    assert tracker.flush()

    server.signal(signal.SIGSTOP)
    blocked.append(seconds(tracker.generation, 1, {"x": 1.0}))
    time.sleep(5)  # the answer is given up and the batch sent again: the server will see it twice
    assert tracker.pending == 1
    assert caplog.text.count("is lost (") == 1
    server.signal(signal.SIGCONT)
    assert tracker.flush(30)
    caplog.clear()

    server.signal(signal.SIGKILL)
    picture = tmp_path / "curve.png"
    picture.write_bytes(b"\x89PNG")
    for step in range(2, 6):
        metrics = {f"kept/{layer}": 0.5 for layer in range(40)} | {"x": float(step)}
        blocked.append(seconds(tracker.generation, step, metrics))
    blocked.append(seconds(tracker.artifact, picture, "pictures"))
    (tmp_path / "namm").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "namm" / name).write_text(name)
    for _ in range(2):
        blocked.append(seconds(tracker.register, tmp_path / "namm", "namm-outage", "champion", {"score": "0.5"}))
    assert not tracker.flush(2)
    assert caplog.text.count("is lost (Connection re") == 1  # reset or refused, told once
    server.start()
    assert tracker.flush(60)
    assert "is back" in caplog.text
    assert max(blocked) < min(BLOCKS_AT_MOST, 0.5)
    assert steps(server.url, tracker.run_id, "x") == [(step, float(step)) for step in range(6)]
    files = MlflowClient(server.url).list_artifacts(tracker.run_id, "pictures")
    assert [file.path for file in files] == ["pictures/curve.png"]
    client = MlflowClient(server.url)
    versions = client.search_model_versions("name = 'namm-outage'")
    assert [(v.run_id, v.tags["score"]) for v in versions] == [(tracker.run_id, "0.5")]
    assert client.get_model_version_by_alias("namm-outage", "champion").version == versions[0].version
    place = client.get_model_version_download_uri("namm-outage", versions[0].version)
    (tmp_path / "got").mkdir()
    got = Path(download_artifacts(place, tracking_uri=server.url, dst_path=str(tmp_path / "got")))
    assert {file.name for file in got.iterdir()} >= {"config.json", "model.safetensors"}

    server.signal(signal.SIGKILL)
    start = time.monotonic()
    assert not tracker.finish(patience=2)
    assert time.monotonic() - start < 20
    assert "resume the job" in caplog.text
