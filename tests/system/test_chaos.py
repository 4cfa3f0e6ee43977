"""The chaos test at its small size. The full one is `make chaos`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.machines import busy

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 300.0 * busy()
"""Seconds for all of it."""


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 60)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds its processes through Linux's /proc")
def test_killed_from_all_sides_it_ends_in_the_same_place(capsys):
    command = [sys.executable, "-m", "tests.system.chaos", "--small", "--seed", "0"]
    chaos = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        printed, _ = chaos.communicate(timeout=PATIENCE)
    finally:
        if chaos.poll() is None:
            chaos.send_signal(signal.SIGTERM)  # it ends what it started
            chaos.wait(30)
    assert chaos.returncode == 0, printed
    with capsys.disabled():
        print(f"\n{printed.splitlines()[-1]}")
