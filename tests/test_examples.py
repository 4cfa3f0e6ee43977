"""Each program in `examples` runs from the root of the repository and prints what its docstring promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIMIT = 240
"""Seconds by the clock after which a program counts as hung; on a free core each takes well under 60."""


def run(name: str) -> str:
    """What an example prints; fails if it exits with an error, warns of a deprecation, or takes too long."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for setting in ("REDIS_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "NAMM_RUNS"):
        environment.pop(setting, None)
    command = [sys.executable, "-W", "error:`past_key_values`", f"examples/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def table(printed: str) -> dict[str, list[float]]:
    """Lines that are a name and numbers, by name."""
    rows = re.findall(r"^([a-z][\w_]*(?:\([^)]*\))?)((?: +[\d.]+)+)$", printed, re.MULTILINE)
    return {name: [float(number) for number in numbers.split()] for name, numbers in rows}


def test_every_program_is_tested():
    tested = re.findall(r'run\("(\w+)"', Path(__file__).read_text())
    assert sorted(tested) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def test_programs_are_short():
    for path in (ROOT / "examples").rglob("*.py"):
        lines = path.read_text().splitlines()
        assert len(lines) < 80, path
        assert lines[0].startswith('"""'), path


def test_use_a_memory():
    printed = run("use_a_memory")
    assert "full cache  10 of 12 right" in printed
    right, share = re.search(r"memory +(\d+) of 12 right, .* \((0\.\d+)\)", printed).groups()
    assert int(right) >= 10 and float(share) < 0.35


def test_write_a_policy():
    rows = table(run("write_a_policy"))
    assert rows["full"][0] == 1.0
    for name in ("namm", "large_keys", "large_keys(recent=400)", "keydiff", "streaming"):
        assert rows[name][0] == pytest.approx(0.47, abs=0.015)
    assert rows["large_keys"] != rows["large_keys(recent=400)"]  # the option reaches the policy
    assert rows["large_keys"][1] > rows["streaming"][1]


def test_write_a_task():
    printed = run("write_a_task")
    assert re.search(r"Where is \w+\?'\nreference: \w+", printed)
    rows = table(printed)
    assert rows["oracle"][1:] == [1.0, 1.0, 1.0]
    _, early, _, late = rows["streaming"]
    assert early < 0.5 < late  # it holds the end
    assert min(rows["namm"][1:]) > 0.5


def test_write_a_search():
    printed = run("write_a_search")
    for name, left in table(printed).items():
        assert name == "generation" or left[-1] < 0.1 < left[0], name
    assert "mean_of_best, told the same once more: the same bits" in printed


def test_evolve_from_python():
    printed = run("evolve_from_python")
    assert re.search(r"^ +8/8 ", printed, re.MULTILINE)  # the last generation
    rows = table(printed)
    assert set(rows) == {"full", "namm", "h2o", "streaming"}
    assert rows["full"][0] == 1.0 and rows["namm"][0] < 1.0
    assert "4,172 numbers in namm/model.safetensors" in printed
    assert "On 60 held-out samples it keeps" in printed


def test_plugins_in_a_job(tmp_path):
    """A job on Ray with a search, a task source and a policy from `examples/plugins`, as `examples/README.md` says."""
    settings = [
        "name=plugged",
        "plugins=[examples/plugins]",
        "search={algorithm: mean_of_best, population: 4, decay: 0.9}",
        "tasks={source: depth, sentences: 60}",
        "train=[early]",
        "heldout=[late]",
        "generations=2",
        "evaluation={samples: 4, policies: [full, namm, {name: large_keys, recent: 16}]}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NAMM_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-m", "orchestrator.cli", "evolve", "configs/smoke.yaml", *settings]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "runs" / "plugged" / "result.json").read_text())
    assert list(result["policies"]) == ["full", "namm", "large_keys(recent=16)"]
    assert set(result["policies"]["namm"]["score"]) == {"early", "late"}


def test_readme_lists_them_all():
    listed = re.findall(r"`python examples/(\w+)\.py`", (ROOT / "examples" / "README.md").read_text())
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
