"""What programs load, and how long they take to start, each measured in a process of its own. Judges nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAVY = ("ray", "torch", "transformers", "mlflow", "matplotlib")
"""Packages that take seconds to import, or a GPU's driver to find."""
COMMAND = "from orchestrator.cli import main; assert main({}) == 0"
LIGHT = {
    "orchestrator.dispatch.dispatcher": "import orchestrator.dispatch.dispatcher",
    "namm --help": COMMAND.format(["--help"]),
    "namm report": COMMAND.format(["report", "finished"]),
    "namm report, of an evaluation": COMMAND.format(["report", "curve"]),
    "namm runs": COMMAND.format(["runs"]),
    "namm evolve --dry-run": COMMAND.format(["evolve", str(ROOT / "configs" / "recall.yaml"), "--dry-run"]),
}
"""Programs that load none of them."""
SECONDS = 0.5
"""Processor time of `namm report` beyond that of an interpreter that imports NumPy."""


def heavy() -> Iterator[str]:
    """Each program of `LIGHT` that does not end well, or loads something heavy."""
    with some_runs() as folder:
        for name, code in LIGHT.items():
            watched = f"{code}\nimport sys; print(*sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
            done = _python(watched, folder)
            if done.returncode or done.stderr.split():
                yield f"{name}: {' '.join(done.stderr.split()[-12:])}"


def slow() -> Iterator[str]:
    """What `namm report` takes too long, the best of three."""
    with some_runs() as folder:
        bare, report = (
            min(_seconds(code, folder) for _ in range(3)) for code in ("import numpy", LIGHT["namm report"])
        )
    if report - bare > SECONDS:
        yield f"{report - bare:.2f} s of processor time more than `import numpy` ({bare:.2f} s)"


@contextmanager
def some_runs() -> Iterator[Path]:
    """A working folder with a finished evolution `finished` and a finished evaluation `curve`."""
    score = {"score": {"a": 0.5}, "mean": 0.5, "normalised": 1.0, "kept": 0.5, "samples": 4, "budget": None}
    interval = {"difference": 0.0, "difference_interval": [-0.1, 0.1]}
    result = {"base": {"a": 0.5}, "policies": {"full": score | interval, "namm": score | interval}, "own_kept": 0.5}
    points = [
        {"policy": name, "budget": None, "level": level, "kept": 0.5, "score": 0.5, "samples": 4} | interval
        for name, level in (("full", None), ("namm", 0.5))
    ]
    with tempfile.TemporaryDirectory(prefix="namm-runs-") as folder:
        for name, asked in (("finished", "job.yaml"), ("curve", "evaluate.yaml")):
            run = Path(folder) / "runs" / name
            run.mkdir(parents=True)
            (run / asked).write_text("name: " + name)
            (run / "result.json").write_text(json.dumps(result))
        (run / "curve.json").write_text(json.dumps(points))
        yield Path(folder)


def _python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "NAMM_RUNS"}
    environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def _seconds(code: str, folder: Path) -> float:
    """Processor time of a program, user's and system's."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = _python(code, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{code!r} failed: {done.stderr.splitlines()[-1]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
