"""A real cluster on one machine: `ray up`, a job, a worker killed, the head restarted, `ray down`.

`make cluster-test` runs it; it needs root, and three to five minutes on two cores. Four machines made of namespaces
(machines.py): the operator's, a head and two workers. What runs there is the shipped cluster.local.yaml with other
addresses. Ends with one line of figures; exit status 1 names what was missed. Where rights or programs are missing it
says so (0).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import yaml

from tests.system.doors import doors, secrets
from tests.system.machines import ROOT, Machine, Machines, Missed, busy, expect, missing, wait

DASHBOARD = "http://127.0.0.1:8265"
GENERATIONS = 16
JOB = ["configs/smoke.yaml", "name=cluster", f"generations={GENERATIONS}", "search.population=8", "workers.count=2"]
QUIET = {"RAY_AUTH_MODE": "token", "RAY_UP_enable_autoscaler_v2": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""What the comments in the cluster file tell the operator to set."""


class Cluster:
    """The cluster and its operator."""

    def __init__(self, machines: Machines):
        self.machines = machines
        self.operator, self.head, *self.workers = machines.all
        self.runs = self.head.home / "namm" / "runs"
        self.file = self.operator.home / "cluster.local.yaml"
        self.started: list[subprocess.Popen] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - start

    def ask(self, *words: str, limit: float = 60, check: bool = True, on: Machine | None = None, **settings) -> str:
        """Runs a command of the operator's and returns what it printed."""
        command, start = (on or self.operator).command(*words, **{**QUIET, **settings}), time.monotonic()
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit * busy(),
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"").decode(errors="replace")
            raise Missed(f"{shlex.join(words)[:120]} took more than {limit:.0f} s:\n{said[-3000:]}") from None
        text = done.stdout.decode(errors="replace")
        if words[0] == "ray" and words[1] != "list":
            print(f"  {shlex.join(words[:2])}: {time.monotonic() - start:.0f} s", flush=True)
        if check and done.returncode:
            raise Missed(f"{shlex.join(words)[:120]} ended with {done.returncode}:\n{text[-3000:]}")
        return text

    def leave(self, *words: str, log: str, **settings) -> subprocess.Popen:
        """Starts a command of the operator's that goes on."""
        with (self.operator.folder / log).open("wb") as stream:
            process = subprocess.Popen(
                self.operator.command(*words, **{**QUIET, **settings}),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def nodes(self) -> dict[str, str]:
        """Node ids of the living, by address."""
        listed = self.ask(
            "ray", "list", "nodes", "--address", DASHBOARD, "--format", "json", "--limit", "50", check=False
        )
        try:
            found = json.loads(listed[listed.index("[") :])
        except ValueError:
            return {}
        return {node["node_ip"]: node["node_id"] for node in found if node["state"] == "ALIVE"}

    def told(self) -> int:
        """Generations of the job that are told."""
        path = self.runs / "cluster" / "generations.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0


def cluster_file(shipped: Path, cluster: Cluster) -> str:
    """The shipped file with this network's addresses, user and key, and one CPU a worker; else as it is."""
    plain = yaml.safe_load(shipped.read_text())
    plain["provider"]["head_ip"] = cluster.head.address
    plain["provider"]["worker_ips"] = [worker.address for worker in cluster.workers]
    plain["auth"] = {"ssh_user": "root", "ssh_private_key": str(cluster.machines.key)}
    commands = plain["worker_start_ray_commands"]
    plain["worker_start_ray_commands"] = [line.replace("ray start", "ray start --num-cpus=1") for line in commands]
    return yaml.safe_dump(plain)


def run(cluster: Cluster) -> None:
    """The operator's day, with two mishaps in one search."""
    reference = prepare(cluster)
    with cluster.phase("up"):
        cluster.ask("ray", "up", str(cluster.file), "-y", limit=180)
        tunnels(cluster)
        wait("both workers join", lambda: len(cluster.nodes()) == 3, 150, 1)
        before = cluster.nodes()  # asking takes seconds, in which a search goes on: not between it and a kill
    with cluster.phase("doors"):
        doors(cluster)
    with cluster.phase("job"):
        over = submit(cluster, "first", *JOB)
        wait("two generations", lambda: over() or cluster.told() >= 2, 150, 0.1)
        with halted(cluster):
            kill_raylet(cluster.workers[1])
            then = cluster.told()
        wait("three more, on the worker that is left", lambda: over() or cluster.told() >= then + 3, 150, 0.1)
    with cluster.phase("head restart"):
        restart_head(cluster, before)
    with cluster.phase("resumed job"):
        wait("the resumed job's end", submit(cluster, "second", "--resume", "cluster"), 180)
    with cluster.phase("records"):
        records(cluster)
        compare(cluster, reference)
    with cluster.phase("down"):
        wait("the lost worker is back", lambda: len(cluster.nodes()) == 3, 120, 1)
        secrets(cluster)
        down(cluster)


def prepare(cluster: Cluster) -> subprocess.Popen:
    """Token and cluster file; starts the same job without a cluster, one worker, to compare with."""
    token = cluster.operator.home / ".ray" / "auth_token"
    cluster.ask("ray", "get-auth-token", "--generate")
    token.chmod(0o600)
    cluster.file.write_text(cluster_file(ROOT / "cluster.local.yaml", cluster))
    settings = [word for word in JOB if not word.startswith("workers.")] + ["workers.count=1"]
    words = [sys.executable, "-m", "orchestrator.cli", "evolve", *settings, "workers.ray_address=local"]
    apart = {"NAMM_RUNS": str(cluster.operator.home / "runs"), "RAY_AUTH_MODE": "disabled"}
    apart["MLFLOW_TRACKING_URI"] = f"sqlite:///{cluster.operator.home}/mlflow.db"
    return cluster.leave("nice", *words, log="reference.log", **apart)


def tunnels(cluster: Cluster) -> None:
    """The dashboard's and MLflow's, as the cluster file's comments have them."""
    cluster.leave("ray", "dashboard", str(cluster.file), log="dashboard.log")
    ssh = ["ssh", "-N", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    target = [f"root@{cluster.head.address}", "-L", "5000:127.0.0.1:5000"]
    cluster.leave(*ssh, "-i", str(cluster.machines.key), *target, log="tunnel.log")
    wait("the dashboard's tunnel", lambda: 8265 in ports(cluster.operator), 60)


def ports(machine: Machine) -> set[int]:
    return {port for _, port, _ in machine.listening()}


def submit(cluster: Cluster, name: str, *job: str) -> Callable[[], bool]:
    """Submits a job; what it returns tells whether the job ended, and raises Missed where it failed."""
    words = ["ray", "job", "submit", "--address", DASHBOARD, "--working-dir", ".", "--submission-id", name]
    log = cluster.operator.folder / f"{name}.log"
    process = cluster.leave(*words, "--", "namm", "evolve", *job, log=log.name)

    def over() -> bool:
        expect(process.poll() in (None, 0), f"job {name} failed:\n{log.read_text(errors='replace')[-4000:]}")
        return process.poll() == 0

    return over


@contextmanager
def halted(cluster: Cluster) -> Iterator[None]:
    """The search stands still meanwhile, however slow this machine is: its process is stopped, and goes on after."""
    drivers = []
    for process, _ in cluster.head.running():
        with suppress(psutil.NoSuchProcess):
            if "evolve" in process.cmdline():
                drivers.append(process)
    for driver in drivers:
        driver.suspend()
    told = cluster.told()
    expect(drivers and told < GENERATIONS - 1, f"the search is as good as over: {told} of {GENERATIONS} generations")
    print(f"  the search is halted after {told} of {GENERATIONS} generations", flush=True)
    try:
        yield
    finally:
        for driver in drivers:
            with suppress(psutil.NoSuchProcess):  # it dies with the head's Ray
                driver.resume()


def kill_raylet(machine: Machine) -> None:
    raylets = [process for process, name in machine.running() if name == "raylet"]
    expect(len(raylets) == 1, f"{machine.name} runs {len(raylets)} raylets")
    raylets[0].kill()


def records(cluster: Cluster) -> None:
    """MLflow has the run: finished, every generation once."""
    code = """
import json
from mlflow import MlflowClient
client = MlflowClient("http://127.0.0.1:5000")
runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
print(json.dumps([[run.info.run_name, run.info.status, [m.step for m in client.get_metric_history(run.info.run_id,
    "workers/evaluations")]] for run in runs]))
"""
    told = cluster.ask("python", "-c", code, MLFLOW_DISABLE_TELEMETRY="true").splitlines()[-1]
    found = json.loads(told)
    expect([run[:2] for run in found] == [["cluster", "FINISHED"]], f"MLflow has {found}")
    expect(len(found[0][2]) == len(set(found[0][2])) == GENERATIONS, f"MLflow has the generations {found[0][2]}")


def compare(cluster: Cluster, reference: subprocess.Popen) -> None:
    """The cluster's memory and table are, bit for bit, those of one worker without a cluster."""
    try:
        status = reference.wait(timeout=180 * busy())
    except subprocess.TimeoutExpired:
        raise Missed("the job without a cluster did not end") from None
    log = cluster.operator.folder / "reference.log"
    expect(status == 0, f"the job without a cluster failed:\n{log.read_text()[-3000:]}")
    ours, theirs = cluster.runs / "cluster", cluster.operator.home / "runs" / "cluster"
    for name in ("namm/model.safetensors", "samples.jsonl"):
        expect(
            (ours / name).read_bytes() == (theirs / name).read_bytes(), f"{name} differs from the job without a cluster"
        )


def restart_head(cluster: Cluster, before: dict[str, str]) -> None:
    """Ray on the head dies, and the job there; `ray up --restart-only` starts Ray again, which finds its worker.

    before: node ids by address, as they were.
    """
    with halted(cluster):
        for process, name in cluster.head.running():
            if name in ("gcs_server", "raylet"):
                with suppress(psutil.NoSuchProcess):  # one may go when the other does
                    process.kill()
    cluster.ask("ray", "up", str(cluster.file), "-y", "--restart-only", limit=180)
    address = cluster.workers[0].address
    found: dict[str, str] = {}

    def there() -> bool:
        found.update(cluster.nodes())  # which may be none at a moment when the head cannot be asked
        return address in found

    wait("the head finds its worker", there, 60, 1)
    expect(found[address] == before[address], "the worker is not the same node after the head's restart")


def down(cluster: Cluster) -> None:
    cluster.ask("ray", "exec", str(cluster.file), "namm head stop")
    cluster.ask("ray", "down", str(cluster.file), "-y", limit=90)

    def left() -> set[str]:
        return {name for _, name in cluster.head.running()} - {"sshd", "bash", "sleep"}

    end = time.monotonic() + 10  # what was told to end may take a moment
    while left() and time.monotonic() < end:
        time.sleep(0.2)
    expect(not left(), f"after `ray down` the head still runs {left()}")


def main() -> int:
    """Runs it all; returns the exit status."""
    if reason := missing():
        print(f"cluster test skipped: {reason}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="namm-cluster-"))
    machines, cluster, missed = None, None, None
    try:
        machines = Machines(folder, ["operator", "head", "worker1", "worker2"])
        cluster = Cluster(machines)
        run(cluster)
    except (Missed, RuntimeError, subprocess.SubprocessError) as error:
        missed = str(error)
    except KeyboardInterrupt:
        missed = "interrupted"
    finally:
        spaces = [machine.pid for machine in machines.all] if machines else []
        if machines:
            machines.close()
        if keep := os.environ.get("NAMM_CLUSTER_LOGS"):
            subprocess.run(["cp", "-a", f"{folder}/.", keep])
        shutil.rmtree(folder, ignore_errors=True)
    if any(psutil.pid_exists(pid) for pid in spaces) or folder.exists():
        missed = missed or "something was left behind"
    figures = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in cluster.seconds.items()) if cluster else ""
    total = time.monotonic() - started
    if missed:
        print(missed, file=sys.stderr)
        print(f"cluster test FAILED after {total:.0f} s ({figures}): {missed.splitlines()[0]}")
        return 1
    what = "head + 2 workers, a worker's and the head's Ray killed, theta bit-equal"
    print(f"cluster test: {what}: {figures}; {total:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
