"""Samples this machine's CPU, memory, disk, network and GPU through MLflow's own monitors. Knows no run."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping

import psutil
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

logger = logging.getLogger(__name__)


class SystemMetrics:
    """Samples this machine from a separate thread, under the names that MLflow's UI knows, until stopped.

    send: called in that thread with the values by name, and the step; first_step: the first one, counted up from
    there. A sample is taken every MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL seconds (10). MLflow's own sampling thread
    would do, but it ends for good at the first request that fails.
    """

    def __init__(self, send: Callable[[Mapping[str, float], int], None], first_step: int) -> None:
        self._send, self._step = send, first_step
        self._interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 10)  # seconds
        self._monitors = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                self._monitors.append(kind())
            except Exception as error:  # no GPU, or a sandbox that hides the counters
                logger.debug("no %s: %s", kind.__name__, error)
        psutil.cpu_percent()  # the first call has no interval to measure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Takes a last sample and ends the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _sample(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(self._interval)
            metrics = {}
            for monitor in self._monitors:
                try:
                    monitor.collect_metrics()
                    metrics.update(monitor.aggregate_metrics())
                    monitor.clear_metrics()
                except Exception as error:
                    logger.debug("%s: %s", type(monitor).__name__, error)
            self._send({f"system/{name}": value for name, value in metrics.items()}, self._step)
            self._step += 1
