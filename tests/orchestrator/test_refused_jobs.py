"""A job that is refused, or interrupted while it is set up: soon, in one line, and nothing is left of it."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import threading
import time
from contextlib import closing

import psutil
import pytest
from mlflow import MlflowClient

from orchestrator.dispatch.ray_address import check_ray
from orchestrator.storage.journal import FILE, Journal, Lock, unused
from orchestrator.storage.reserved import Reserved
from orchestrator.tracking.tracker import check_experiment

SOON = 10.0
"""Seconds within which an address answers or is refused."""
INTERRUPTED = 5.0
"""Seconds that Ctrl-C may take on a machine with nothing else to do."""


@pytest.fixture
def dead():
    """An address where nothing answers, nor anything else can begin to."""
    with socket.socket() as held:  # bound, not listening
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def silent():
    """An address that takes connections and says nothing."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def website():
    """An address of another service."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("who", ["dead", "silent", "website", "client"])
def test_a_ray_address_that_is_none_is_one_line_soon(who, request):
    address = f"ray://{request.getfixturevalue('dead')}" if who == "client" else request.getfixturevalue(who)
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}") as caught:
        check_ray(address)
    assert time.monotonic() - start < SOON
    assert "correct workers.ray_address or RAY_ADDRESS" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["head", "head:port", "head:99999", "ray://", "", "head:1:2"])
def test_a_ray_address_that_cannot_be_read(address):
    with pytest.raises(ValueError, match="cannot be read: give HOST:PORT"):
        check_ray(address)


def test_a_refused_job_leaves_no_folder(namm, job_file, tmp_path, dead):
    start = time.monotonic()
    _, errors = (process := namm("evolve", job_file(), env={"RAY_ADDRESS": dead})).communicate(timeout=60)
    assert time.monotonic() - start < 3 * SOON  # with the time that imports take on a busy machine
    assert process.returncode == 2 and errors.count("\n") == 1 and f"answers at {dead}" in errors
    assert not (tmp_path / "runs").exists()


def test_a_deleted_experiment_is_said_before_ray_is_started(namm, job_file, tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    check_experiment(store, "gone")
    client = MlflowClient(store)
    client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    path = job_file(mlflow_uri=store, mlflow_experiment="gone")
    printed, errors = (process := namm("evolve", path)).communicate(timeout=60)
    assert process.returncode == 2 and "starting Ray" not in printed
    assert "name another with mlflow_experiment=..., or restore it" in errors and errors.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    check_experiment(store, "another")  # the advice can be followed


def test_a_folder_is_left_as_it_was_found(tmp_path):
    folder = tmp_path / "runs" / "new"
    with pytest.raises(ValueError, match="refused"), Reserved(folder, fresh=True):
        (folder / "job.yaml").touch()
        (folder / "namm").mkdir()
        raise ValueError("refused")
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "notes").touch()
    with pytest.raises(KeyboardInterrupt), Reserved(folder, fresh=True):
        (folder / "job.yaml").touch()
        raise KeyboardInterrupt
    assert os.listdir(folder) == ["notes"]
    with pytest.raises(ValueError, match="refused"), Reserved(folder, fresh=True) as reserved:
        (folder / "job.yaml").touch()
        reserved.keep()
        raise ValueError("refused")
    assert (folder / "job.yaml").exists() and unused(folder)


def test_a_job_that_never_began_is_in_nobodys_way_and_one_that_did_is(tmp_path):
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    with closing(Journal(folder, "another job")):
        pass
    with Reserved(folder, fresh=True) as reserved:
        with closing(Journal(folder, "this job")) as journal:
            journal.fact("statistics", lambda: 1)
        reserved.keep()
    with pytest.raises(ValueError, match="exists: continue it with --resume"), Reserved(folder, fresh=True):
        pass
    with Reserved(folder, fresh=False), pytest.raises(ValueError, match="in use by a live job"):
        Lock(folder)
    assert (folder / FILE).exists()


@pytest.mark.parametrize("after", ["at once", "as Ray starts", "a second later", "as workers start"])
def test_ctrl_c_while_a_job_is_set_up(namm, job_file, tmp_path, after):
    process = namm("evolve", job_file())
    started = psutil.Process(process.pid)
    if after == "at once":
        time.sleep(2.0)
    else:
        assert "starting Ray" in process.stdout.readline()
        time.sleep({"as Ray starts": 0.0, "a second later": 1.0, "as workers start": 5.0}[after])
    family = started.children(recursive=True)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    took = time.monotonic() - start
    assert took < INTERRUPTED * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), f"{took:.1f} s"
    assert "Traceback" not in errors
    if "--resume" in printed:
        assert (tmp_path / "runs" / "smoke" / "job.yaml").exists()
    else:
        assert not (tmp_path / "runs").exists()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
