"""An evolution job that is started from Python. Knows how it is asked for, and nothing of how it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from namm_core.config import from_mapping
from orchestrator.evolve_job import run
from orchestrator.report.progress import Display
from orchestrator.spec import JobSpec


def evolve(job: JobSpec | Mapping[str, Any], *, resume: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Runs an evolution job to its end, as `namm evolve` does, and returns what its `result.json` holds.

    job: a `JobSpec`, or a mapping with the keys of a job file; resume: whether to continue an interrupted run of that
    name; quiet: whether to print nothing while the job runs. The run folder is `NAME` below `NAMM_RUNS` (default
    `runs`), with the memory in `NAME/namm`. Ctrl-C interrupts the job without losing anything.
    Raises ValueError, one line, for bad input, before anything is written, and `WorkFailed` where the job cannot go on.
    """
    spec = job if isinstance(job, JobSpec) else from_mapping(JobSpec, job, "job")
    display = Display(Console(quiet=True)) if quiet else Display()
    try:
        return run(spec, resume, display)
    finally:
        display.stop()
