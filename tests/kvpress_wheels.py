"""The wheels that `kvpress` is made of, each pinned by version and SHA-256: never installed, only read from.

Python imports from a wheel that stands on its path. `kvpress` 0.5.5 changes all attention functions of transformers
when it is imported, so that it belongs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.model_packages import Damaged, Wheel, download

ROOT = Path(__file__).parent.parent
WHEELS = (
    Wheel("kvpress==0.5.5", "900bdb175b546f19c844a8d40e9e7bc6bff7f302689821263d376e31ff62f07e"),
    Wheel("fire==0.7.1", "e43fd8a5033a9001e7e2973bab96070694b9f12f2e0ecf96d4683971b5ab1882"),
    Wheel("termcolor==3.3.0", "cf642efadaf0a8ebbbf4bc7a31cec2f9b5f21a9f726f4ccbb08192c9c26f43a5"),
    Wheel("cachetools==5.5.2", "d26a22bcc62eb95c3beabd9f1ee5e820d3d2704fe2967cbe350e20c8ffcd3f0a"),
)
"""kvpress, and what it imports beyond transformers."""


def fetched(place: Path) -> list[Path]:
    """The wheels as files in `place`; skips the test where no package index answers."""
    try:
        return download(WHEELS, place)
    except Damaged:
        raise
    except ValueError as error:
        pytest.skip(f"kvpress cannot be had: {error}")


def run(wheels: list[Path], *command: str) -> subprocess.CompletedProcess:
    """`python COMMAND` with the wheels on its path, before all else."""
    path = os.pathsep.join(map(str, (*wheels, ROOT)))
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
