"""Jobs that write results to a run folder kept twice, for the tests of storage, lease and pieces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.storage.journal import Journal
from workers.unit import SampleRef, SampleResult

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"every": 0.1, "beat": 0.5}

# A job: results one by one, each printed when it is on disk.
JOB = """
import sys, time
from pathlib import Path
from orchestrator.storage.journal import Journal
from orchestrator.storage.mirror import Mirror
from workers.unit import SampleResult
folder, url, first, count, pause = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5]), float(sys.argv[5])
try:
    with Mirror(folder, url, every=0.1, beat=0.5) as mirror:
        journal = Journal(folder, "job")
        print("open", len(journal), flush=True)
        for index in range(first, first + count):
            journal.put([("p", SampleResult("residence", "train", index, 0.25, -0.1, 0.5, [0.4], 100, "Paris"))])
            print(index, time.time(), flush=True)
            time.sleep(pause)
        journal.close()
        print("closed", mirror.close(20), flush=True)
except ValueError as error:
    print("refused", error, flush=True)
"""


def start(folder: Path, url: str, first: int = 0, count: int = 10**6, pause: float = 0.01, **env) -> subprocess.Popen:
    command = [sys.executable, "-c", JOB, str(folder), url, str(first), str(count), str(pause)]
    environment = {**os.environ, **env}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def lines(job: subprocess.Popen) -> list[str]:
    return job.communicate(timeout=60)[0].splitlines()


def killed_after(job: subprocess.Popen, seconds: float, safe: float) -> list[int]:
    """Kills a job `seconds` after its first result; returns what was on disk `safe` seconds before."""
    assert job.stdout.readline().startswith("open")
    job.stdout.readline()
    time.sleep(seconds)
    job.send_signal(signal.SIGKILL)
    at = time.time()
    known = [line.split() for line in job.stdout.read().splitlines() if line.count(" ") == 1]
    job.wait()
    return [int(index) for index, when in known if float(when) < at - safe]


def result(index: int, score: float = 0.25) -> SampleResult:
    return SampleResult("residence", "train", index, score, -0.1, 0.5, [0.4], 100, "Paris")


def put(folder: Path, *indices: int, score: float = 0.25) -> None:
    folder.mkdir(exist_ok=True)
    journal = Journal(folder, "job")
    journal.put([("p", result(index, score)) for index in indices])
    journal.close()


def has(folder: Path, index: int) -> bool:
    journal = Journal(folder, "job")
    journal.close()
    return journal.get("p", SampleRef("residence", "train", index)) is not None


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pieces(store: Path) -> list[Path]:
    return sorted((store / "journal").iterdir())


def until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.02)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text
