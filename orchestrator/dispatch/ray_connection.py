"""Connecting to Ray: one that is started here, or the cluster that this process runs in. Knows nothing of jobs."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from orchestrator.dispatch.ray_address import LOCAL, address_of, check_ray
from orchestrator.messages import first_line


@contextmanager
def connected(address: str | None, namespace: str, cpus: int | None = None) -> Iterator[None]:
    """A Ray connection for the length of the block.

    address: `local` starts Ray here and ends it afterwards; anything else is joined; None means RAY_ADDRESS, which a
    submitted job has, else `local`. namespace: where this job's actors are named. cpus: CPUs of a local Ray, None for
    all of this machine's. Raises ValueError, one line, when nothing answers.
    """
    address = address_of(address)
    check_ray(address)
    # Explicit everywhere: the default writes a token into the home folder; clusters set their own mode.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if address == LOCAL else "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: workers would yield to everything else
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    local = address == LOCAL
    told_to_go = signal.getsignal(signal.SIGTERM)
    before = set(psutil.Process().children(recursive=True))
    try:
        try:
            ray.init(
                address,
                num_cpus=cpus if local else None,
                include_dashboard=False if local else None,
                namespace=namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            raise ValueError(
                f"no Ray cluster answers at {address} ({first_line(error)}): correct workers.ray_address or RAY_ADDRESS"
            ) from None
        signal.signal(signal.SIGTERM, told_to_go)  # ray.init sets its own
        yield
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        if local:
            _end(started)


def _end(processes: set[psutil.Process]) -> None:
    """Ends what Ray left: its agents miss the end of a raylet that is killed while they start."""
    _, left = psutil.wait_procs(processes, timeout=0.5)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
