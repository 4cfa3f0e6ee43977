"""MLflow stores that a run is told to: what is accepted, and what is refused in one line."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.utils.file_utils import local_file_uri_to_path

from orchestrator.tracking.store import check_mlflow, default_store, sqlite_file, store_of, ui_command
from orchestrator.tracking.tracker import Tracker


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    class Own(Health):
        pass

    server = HTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield Own, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_tracking_server_that_answers_is_accepted(web, status):
    handler, url = web
    handler.status = status
    check_mlflow(url)
    check_mlflow(url + "/")


def test_a_gateway_without_a_server_behind_it_is_refused(web):
    handler, url = web
    handler.status = 502
    with pytest.raises(ValueError, match="status 502"):
        check_mlflow(url, patience=0.5)


def test_a_tracking_server_that_is_not_there_is_one_line_that_helps():
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        check_mlflow(f"http://me:hidden@127.0.0.1:{free_port()}", patience=1.0)
    assert time.monotonic() - start < 3
    text = one_line(error)
    assert "Connection refused" in text and "start the server" in text and "hidden" not in text


def test_a_tracking_server_that_accepts_but_never_answers_is_not_waited_for_for_ever():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(ValueError, match="did not answer within"):
            check_mlflow(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=1.0)
        assert time.monotonic() - start < 3


def test_a_store_in_a_folder_still_to_be_made_is_accepted_and_nothing_is_written(tmp_path):
    check_mlflow(default_store(tmp_path / "runs" / "new"))
    assert list(tmp_path.iterdir()) == []


def test_stores_that_cannot_be_are_one_line_each(tmp_path):
    (tmp_path / "text").write_text("not a database, but a longer text")
    (tmp_path / "folder").mkdir()
    cases = {
        f"sqlite:///{tmp_path}/text": "not an sqlite database",
        f"sqlite:///{tmp_path}/text/mlflow.db": "cannot be written",
        f"sqlite:///{tmp_path}/folder": "is a folder",
        "sqlite://": "names no file",
        "sqlite:///:memory:": "names no file",
        "file:///somewhere": "no known kind",
        "./mlruns": "no known kind",
        "http://": "cannot be read",
    }
    for uri, reason in cases.items():
        with pytest.raises(ValueError, match=reason) as error:
            check_mlflow(uri)
        one_line(error)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        check_mlflow(default_store(tmp_path))


def test_the_store_of_a_folder_is_a_file_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sqlite_file(default_store(".")) == tmp_path / "mlflow.db"
    assert sqlite_file("sqlite:///runs/mlflow.db") == tmp_path / "runs" / "mlflow.db"
    assert sqlite_file("http://host") is None


def test_a_tracking_servers_ui_is_its_own(tmp_path):
    with pytest.raises(ValueError, match="open that address in a browser"):
        ui_command("http://host:5000")
    command = ui_command(default_store(tmp_path), 5050)
    assert command[0] == sys.executable and "5050" in command


@pytest.mark.parametrize("name", ["x%20y", "done?", "a#b %", "x%2520y?z=1&w"])
def test_a_folder_may_be_called_anything(tmp_path, name):
    """Files, too, are where the folder's name says, and nothing is made beside it."""
    folder = tmp_path / name
    folder.mkdir()
    uri = default_store(folder)
    assert sqlite_file(uri) == folder / "mlflow.db"
    check_mlflow(uri)
    tracker = Tracker(uri, "namm", "run")
    (folder / "file").write_text("text")
    tracker.artifact(folder / "file")
    assert tracker.finish()
    assert (folder / "mlflow.db").is_file() and [*folder.glob("mlartifacts/*/artifacts/file")]
    assert os.listdir(tmp_path) == [name]
    destination = ui_command(uri)[ui_command(uri).index("--artifacts-destination") + 1]
    assert local_file_uri_to_path(destination) == str(folder / "mlartifacts")


def test_the_store_of_a_job_is_the_given_one_then_the_environments_then_a_file_beside_the_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")
    assert store_of("http://here:5000", tmp_path / "runs") == "http://here:5000"
    assert store_of(None, tmp_path / "runs") == "http://there:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store_of(None, Path(tmp_path / "runs")) == default_store(tmp_path)
