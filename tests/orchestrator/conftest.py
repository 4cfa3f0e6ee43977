"""A small real job: the shipped model, real Ray, real Redis, a real MLflow store, in a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.orchestrator.browser import CHROMIUM, Page

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def smoke() -> dict:
    """The smoke job's settings, with the model's place made absolute."""
    plain = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    plain["model"]["path"] = str(ROOT / "models" / "recall-small")
    return plain


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Page]:
    """An empty page of a real browser."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    page = Page(tmp_path_factory.mktemp("chromium"))
    try:
        yield page
    finally:
        page.close()


@pytest.fixture
def namm(tmp_path):
    """Runs the `namm` command in a folder of its own: namm(*arguments, **settings of subprocess.Popen)."""

    def start(*arguments: str, **settings) -> subprocess.Popen:
        environment = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "MLFLOW_TRACKING_URI")}
        environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", **settings.pop("env", {})}
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=settings.pop("cwd", tmp_path),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests run in the background of a shell, Ctrl-C is ignored and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **settings,
        )

    return start


@pytest.fixture
def job_file(tmp_path, smoke):
    """Writes a job file: job_file(**changes of the smoke job's top-level settings) -> path."""

    def write(**changes) -> str:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({**smoke, **changes}))
        return str(path)

    return write


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path) -> str:
    """Where a run folder may be kept twice."""
    return f"file://{tmp_path}/kept/run" if request.param == "file" else f"memory://{tmp_path.name}/run"


@pytest.fixture
def kept(tmp_path) -> Path:
    """The folder of a file:// URL."""
    return tmp_path / "kept"
