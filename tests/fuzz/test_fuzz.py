"""The fuzz test at its small size: 45 seconds over all kinds. The full one is `make fuzz`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INPUTS = 400
"""Of each kind: some 30 seconds."""
PATIENCE = 400.0
"""Seconds for all of it, on a busy machine."""


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 30)
def test_whatever_is_read_is_refused_in_one_line_or_right():
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", str(INPUTS), "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("fuzz: ") and last.endswith(" 0 faults")
