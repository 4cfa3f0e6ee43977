"""The provided cluster files against Ray's own schema, and against what they promise: nothing open, nothing lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from orchestrator.services.head import HeadConfig

ROOT = Path(__file__).resolve().parents[2]
FILES = ["cluster.yaml", "cluster.local.yaml"]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def variants() -> dict[str, dict]:
    """cluster.yaml with each of its commented providers."""
    found = {}
    for block in re.findall(r"(?:^#>.*\n)+", (ROOT / "cluster.yaml").read_text(), re.MULTILINE):
        changes = yaml.safe_load("\n".join(line[3:] for line in block.splitlines()))
        found[changes["provider"]["type"]] = {**read("cluster.yaml"), **changes}
    return found


def all_files() -> dict[str, dict]:
    return {**{name: read(name) for name in FILES}, **variants()}


@pytest.mark.parametrize("name", [*FILES, "gcp", "azure"])
def test_ray_accepts_it(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(all_files()[name])
    validate_config(prepared)
    if name != "cluster.local.yaml":
        head, worker = (prepared["available_node_types"][kind] for kind in ("head", "worker"))
        assert prepared["head_node_type"] == "head" and head["resources"] == {"CPU": 0, "GPU": 0}
        assert head["max_workers"] == 0 and 1 <= worker["min_workers"] <= worker["max_workers"]
        # The smallest of what is asked for must fit the whole.
        assert prepared["max_workers"] >= worker["max_workers"]


def test_spot_workers_and_a_head_that_stays():
    types = {name: plain["available_node_types"] for name, plain in all_files().items() if "local" not in name}
    assert types["cluster.yaml"]["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gcp"]["worker"]["node_config"]["scheduling"][0]["preemptible"] is True
    assert types["azure"]["worker"]["node_config"]["azure_arm_parameters"]["priority"] == "Spot"
    for name, plain in types.items():
        assert not re.search("spot|preempt", str(plain["head"]), re.IGNORECASE), name


@pytest.mark.parametrize("name", FILES)
def test_token_authentication_everywhere(name):
    plain = read(name)
    assert plain["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for kind in ("head", "worker"):
        (start,) = [line for line in plain[f"{kind}_start_ray_commands"] if "ray start" in line]
        assert "export RAY_AUTH_MODE=token" in start.split("ray start")[0], kind
        assert any("chmod 600 ~/.ray/auth_token" in line for line in plain[f"{kind}_start_ray_commands"]), kind


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_open_to_the_world(name):
    plain = read(name)
    commands = " ".join(plain["head_start_ray_commands"] + plain["worker_start_ray_commands"])
    assert "0.0.0.0" not in commands and "--dashboard-host=127.0.0.1" in commands
    assert "redis-server" not in commands and "mlflow" not in commands, "namm head start decides where these listen"
    rules = plain["provider"].get("security_group", {}).get("IpPermissions", [])
    assert not rules, "Ray's own two rules are enough: the cluster's machines, and ssh"


@pytest.mark.parametrize("name", FILES)
def test_the_head_has_its_services_and_no_evaluator(name):
    commands = read(name)["head_start_ray_commands"]
    order = [
        next(i for i, line in enumerate(commands) if word in line) for word in ("ray stop", "namm head", "ray start")
    ]
    assert order == sorted(set(order)), "`ray stop`, then the services, then Ray"
    start = commands[order[-1]]
    assert start.startswith(". ~/namm/environment") and "--num-cpus=0 --num-gpus=0" in start
    # Read on the head itself: neither the file nor the output of `ray up` holds it.
    assert '--redis-password="$(cat ~/namm/gcs/password)"' in start
    assert f"--folder {HeadConfig.folder}" in commands[order[1]]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


@pytest.mark.parametrize("name", FILES)
def test_workers_outlive_a_head_that_restarts(name):
    (start,) = [line for line in read(name)["worker_start_ray_commands"] if "ray start" in line]
    assert int(re.search(r"RAY_gcs_rpc_server_reconnect_timeout_s=(\d+)", start)[1]) >= 120
    assert "RAY_worker_niceness=0" in start and "--address=$RAY_HEAD_IP:6379" in start


@pytest.mark.parametrize("name", FILES)
def test_installs_this_repository_with_its_constraints(name):
    plain = read(name)
    for path in plain["file_mounts"].values():
        assert path.startswith("~") or (ROOT / path).exists(), path
    setup = " ".join(plain["setup_commands"])
    assert "pip install --quiet -c constraints.txt -e ." in setup
    assert "namm/venv/bin:$PATH" in setup and "~/.bashrc" in setup, "`ray` and `namm` are on the login PATH"
    packages = set(re.findall(r"include = \[(.*)\]", (ROOT / "pyproject.toml").read_text())[0].split(", "))
    assert {one.strip('"').rstrip("*") for one in packages} <= set(plain["file_mounts"].values())


def test_both_files_start_the_same():
    aws, local = read("cluster.yaml"), read("cluster.local.yaml")
    assert aws["head_start_ray_commands"] == local["head_start_ray_commands"]
    assert aws["setup_commands"] == local["setup_commands"]
    assert aws["file_mounts"] == local["file_mounts"]


@pytest.mark.parametrize("name", FILES)
def test_the_comments_name_the_operators_commands(name):
    text = (ROOT / name).read_text()
    head = text[: text.index("cluster_name:")]
    for command in (f"ray up {name}", f"ray dashboard {name}", "-L 5000:127.0.0.1:5000", f"ray down {name}"):
        assert command in head, command
    for command in ("ray job submit", "ray job list|logs|stop", "--resume", "--restart-only", "RAY_AUTH_TOKEN_PATH"):
        assert command in head, command
