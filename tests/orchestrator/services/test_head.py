"""The head's services: real servers in a folder and on ports of their own."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis
import requests

from orchestrator.services import head
from orchestrator.services.head import HeadConfig

ROOT = Path(__file__).resolve().parents[3]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def pid(config: HeadConfig, name: str) -> int:
    return int((config.folder / name / "pid").read_text().split()[0])


def kill(config: HeadConfig, name: str) -> None:
    process = psutil.Process(pid(config, name))
    process.kill()
    process.wait(10)


def exported(path: Path) -> dict[str, str]:
    """What a shell has after sourcing the file."""
    shell = ["env", "-i", "sh", "-c", '. "$1" && env', "sh", str(path)]
    lines = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Services started as a person does it: by a command whose process and terminal are then gone."""
    cache, gcs, mlflow = free_ports(3)
    config = HeadConfig(tmp_path_factory.mktemp("head") / "it's here", "127.0.0.1", cache, gcs, mlflow)
    words = ["start", "--folder", str(config.folder), "--bind", "127.0.0.1", "--cache-port", str(cache)]
    command = [sys.executable, "-m", "orchestrator.cli", "head", *words, "--gcs-port", str(gcs)]
    try:
        done = subprocess.run(
            [*command, "--mlflow-port", str(mlflow)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr
        yield config
    finally:
        head.stop(config)


def test_all_answer_with_passwords_of_their_own(running):
    settings = exported(running.folder / "environment")
    cache = redis.Redis.from_url(settings["REDIS_URL"])
    assert cache.ping()
    memory = cache.info("memory")
    assert memory["maxmemory_policy"] == "allkeys-lru" and memory["maxmemory"] == 2**30
    passwords = [(running.folder / name / "password").read_text() for name in ("cache", "gcs")]
    assert len(set(passwords)) == 2 and all(len(one) == 64 for one in passwords)
    host, port = settings["RAY_REDIS_ADDRESS"].split(":")
    gcs = redis.Redis(host, int(port), password=passwords[1])
    assert host == "127.0.0.1" and gcs.config_get("appendonly") == {"appendonly": "yes"}
    assert gcs.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    for port in (running.cache_port, running.gcs_port):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis("127.0.0.1", port).ping()
    assert requests.get(settings["MLFLOW_TRACKING_URI"] + "/health", timeout=5).text == "OK"
    assert settings["NAMM_RUNS"] == str(running.folder / "runs") and Path(settings["NAMM_RUNS"]).is_dir()
    assert settings["RAY_AUTH_MODE"] == "token"


def test_the_cache_gives_its_clients_no_files_and_no_code(running):
    cache = redis.Redis.from_url(exported(running.folder / "environment")["REDIS_URL"])
    for command in ("CONFIG GET dir", "EVAL return(1) 0", "SAVE", "REPLICAOF NO ONE", "MODULE LIST", "SHUTDOWN"):
        with pytest.raises(redis.ResponseError, match="unknown command"):
            cache.execute_command(*command.split(" "))


def test_secrets_are_the_users_alone_and_on_no_command_line(running):
    assert stat.S_IMODE(running.folder.stat().st_mode) == 0o700
    for path in ("environment", "cache/password", "cache/redis.conf", "gcs/password", "gcs/redis.conf"):
        assert stat.S_IMODE((running.folder / path).stat().st_mode) == 0o600, path
    for path in ("gcs/appendonly.aof", "mlflow/mlflow.db"):
        assert stat.S_IMODE((running.folder / path).stat().st_mode) & 0o077 == 0, path
    words = [(running.folder / name / "password").read_text() for name in ("cache", "gcs")]
    for name in ("cache", "gcs", "mlflow"):
        line = " ".join(psutil.Process(pid(running, name)).cmdline())
        log = (running.folder / name / "log").read_text()
        assert not any(word in line or word in log for word in words)


def test_mlflow_and_gcs_listen_on_loopback_only(running):
    for name in ("gcs", "mlflow"):
        family = [psutil.Process(pid(running, name)), *psutil.Process(pid(running, name)).children(recursive=True)]
        listening = [one for part in family for one in part.net_connections("tcp") if one.status == "LISTEN"]
        assert listening and {one.laddr.ip for one in listening} == {"127.0.0.1"}


def test_started_again_nothing_changes_and_what_died_is_started(running):
    before = {name: pid(running, name) for name in ("cache", "gcs", "mlflow")}
    environment = (running.folder / "environment").read_text()
    head.start(running)
    assert {name: pid(running, name) for name in before} == before
    kill(running, "cache")
    kill(running, "mlflow")  # it only watches over the one that serves, which is left and holds the port
    assert head.status(running) == {"cache": False, "gcs": True, "mlflow": False}
    head.start(running)
    assert all(head.status(running).values())
    after = {name: pid(running, name) for name in before}
    assert after["gcs"] == before["gcs"] and after["cache"] != before["cache"] and after["mlflow"] != before["mlflow"]
    assert (running.folder / "environment").read_text() == environment


def test_other_settings_start_what_they_concern_again(running):
    before = {name: pid(running, name) for name in ("cache", "gcs", "mlflow")}
    head.start(replace(running, cache_memory="64mb"))
    changed = {name for name in before if pid(running, name) != before[name]}
    url = exported(running.folder / "environment")["REDIS_URL"]
    assert changed == {"cache"} and redis.Redis.from_url(url).info("memory")["maxmemory"] == 64 * 2**20
    head.start(running)


def test_what_ray_keeps_survives_its_server(running):
    password = (running.folder / "gcs" / "password").read_text()
    redis.Redis("127.0.0.1", running.gcs_port, password=password).set("kept", "yes")
    time.sleep(1.5)  # appendfsync everysec
    kill(running, "gcs")
    head.start(running)
    assert redis.Redis("127.0.0.1", running.gcs_port, password=password).get("kept") == b"yes"


def test_a_port_in_use_is_named(running, tmp_path):
    other = replace(running, folder=tmp_path / "other")
    with pytest.raises(ValueError, match=rf"port {running.cache_port} on 127.0.0.1 is in use .* --cache-port"):
        head.start(other)
    assert not any(head.status(other).values())
    assert all(head.status(running).values()), "the other folder's services are left alone"
    assert head.stop(other) == []


@pytest.mark.parametrize(
    "bind, message",
    [
        ("0.0.0.0", "would open Redis to everybody"),
        ("::", "would open Redis to everybody"),
        ("203.0.113.7", "give this machine's private address with --bind"),
        ("head", "'head' is no address"),
    ],
)
def test_addresses_that_cannot_be(tmp_path, bind, message):
    cache, gcs, mlflow = free_ports(3)
    with pytest.raises(ValueError, match=message) as error:
        head.start(HeadConfig(tmp_path, bind, cache, gcs, mlflow))
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written .* --folder"):
        head.start(HeadConfig(tmp_path / "file" / "namm", "127.0.0.1"))


def test_a_reused_process_number_is_not_ours(tmp_path):
    """A pid file from before a reboot may name a stranger's process by now."""
    (tmp_path / "cache").mkdir()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        (tmp_path / "cache" / "pid").write_text(f"{stranger.pid} 1.00\n")
        config = HeadConfig(tmp_path)
        assert head.status(config)["cache"] is False
        assert head.stop(config) == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_stop_ends_them_and_keeps_what_they_stored(running):
    processes = [psutil.Process(pid(running, name)) for name in ("cache", "gcs", "mlflow")]
    processes += processes[-1].children(recursive=True)
    assert head.stop(running) == ["cache", "gcs", "mlflow"]
    assert not any(process.is_running() and process.status() != "zombie" for process in processes)
    assert head.status(running) == {"cache": False, "gcs": False, "mlflow": False}
    assert (running.folder / "mlflow" / "mlflow.db").exists() and (
        running.folder / "gcs" / "appendonly.aof"
    ).stat().st_size
