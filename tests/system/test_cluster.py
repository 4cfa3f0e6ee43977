"""The cluster of cluster.py as a test: `ray up` to `ray down` on machines made of namespaces."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.system.machines import ROOT, busy, missing


@pytest.mark.slow
@pytest.mark.timeout(420 * busy())
def test_a_job_on_a_real_cluster():
    if reason := missing():
        pytest.skip(reason)
    # In a process of its own: the machines end with the thread that made them, and its signals are its own.
    command = [sys.executable, "-m", "tests.system.cluster"]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = program.communicate(timeout=410 * busy())
    finally:
        if program.poll() is None:
            program.terminate()  # it cleans up
            program.wait(30)
    assert program.returncode == 0, said[-6000:]
    assert said.splitlines()[-1].startswith("cluster test: head + 2 workers"), said
