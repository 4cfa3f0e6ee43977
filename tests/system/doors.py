"""What the cluster shows to others: which ports, to whom, what a stranger is told, and where secrets stand.

The list of docs/security.md, checked. Knows the services of a cluster; not how it was made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psutil

from tests.system.machines import expect

if TYPE_CHECKING:
    from tests.system.cluster import Cluster

OPEN = {22: "sshd", 6390: "redis-server", 44217: "python", 44227: "python"}
"""Programs beside Ray's own that other machines reach (docs/security.md); the last two are metrics, without a guard."""
RAYS = ("gcs_server", "raylet", "ray::")
"""Ray's programs, each of which asks for the token."""
LOOPBACK_ONLY = {5000: "mlflow", 6391: "gcs", 8265: "dashboard"}

# Asked from another machine, without token and password.
_STRANGER = """
import json, socket, sys, urllib.error, urllib.request
import grpc, redis
host, answers = sys.argv[1], {}
for port in sys.argv[2:]:
    with socket.socket() as probe:
        probe.settimeout(3)
        answers[port] = probe.connect_ex((host, int(port))) == 0
try:
    answers["redis"] = str(redis.Redis(host, 6390, socket_timeout=5).ping())
except redis.RedisError as error:
    answers["redis"] = type(error).__name__
calls = {"gcs": (6379, "NodeInfoGcsService/GetAllNodeInfo"), "object manager": (8076, "ObjectManagerService/Pull"),
         "node manager": (8077, "NodeManagerService/GetSystemConfig"), "client": (10001, "RayletDriver/ClusterInfo")}
for name, (port, method) in calls.items():
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=5)
            answers[name] = "an answer"
        except grpc.RpcError as error:
            answers[name] = error.code().name
try:
    answers["agent"] = urllib.request.urlopen(f"http://{host}:52365/api/jobs/", timeout=5).status
except urllib.error.HTTPError as error:
    answers["agent"] = error.code
print(json.dumps(answers))
"""


def doors(cluster: Cluster) -> None:
    """What other machines can reach, and what they are told without the token or the password."""
    for machine in [cluster.head, *cluster.workers]:
        for address, port, program in sorted(machine.listening(), key=lambda one: one[1]):
            print(f"  {machine.name:8} {address}:{port} {program}", flush=True)
            if port in LOOPBACK_ONLY or "127.0.0.1" in address:
                expect("127.0.0.1" in address, f"{LOOPBACK_ONLY.get(port)} listens on {address}:{port}")
                continue
            known = port == 10001 or OPEN.get(port) == program or program.startswith(RAYS)
            expect(known, f"{program} on {machine.name} listens on {address}:{port}; docs/security.md does not have it")
    answers = json.loads(cluster.ask("python", "-c", _STRANGER, cluster.head.address, *map(str, LOOPBACK_ONLY)))
    expect("AuthenticationError" in answers.pop("redis"), "the prompts' Redis answers without a password")
    for name in ("gcs", "node manager", "object manager", "client"):
        told = answers.pop(name)
        expect(told == "UNAUTHENTICATED", f"Ray's {name} told a stranger {told}")
    expect(answers.pop("agent") == 401, "Ray's agent answers without a token")
    expect(not any(answers.values()), f"reachable from another machine: {answers}")
    words = ["ray", "list", "nodes", "--address", "http://127.0.0.1:8265"]
    answer = cluster.ask(*words, check=False, RAY_AUTH_TOKEN="0" * 64)
    expect("401" in answer or "403" in answer or "nvalid" in answer, f"another token is accepted:\n{answer[-1500:]}")


def secrets(cluster: Cluster) -> None:
    """Token and passwords stand in no log, no record and, but for the one that Ray takes no other way, no command."""
    home = cluster.head.home
    words = {
        "token": (home / ".ray" / "auth_token").read_text().strip(),
        "cache password": (home / "namm" / "cache" / "password").read_text(),
        "gcs password": (home / "namm" / "gcs" / "password").read_text(),
    }
    searched = [home / "namm" / "runs", home / "namm" / "mlflow", home / "namm" / "cache" / "log"]
    searched += [machine.folder / "tmp" / "ray" for machine in cluster.machines.all]
    for path in (file for root in searched for file in ([root] if root.is_file() else root.rglob("*"))):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 50_000_000:
            text = path.read_bytes()
            for name, word in words.items():
                expect(word.encode() not in text, f"the {name} stands in {path}")
    for machine in cluster.machines.all:
        for process in machine.processes():
            try:
                line, name = " ".join(process.cmdline()), process.name()
            except psutil.Error:
                continue
            for what, word in words.items():
                known = what == "gcs password" and name in ("gcs_server", "raylet")
                expect(known or word not in line, f"the {what} stands on the command line of {name}")
