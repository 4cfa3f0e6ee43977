"""The Ray actor around one evaluator. Knows nothing of searches: units in, results out."""

from __future__ import annotations

import importlib
import logging
import operator
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

import psutil
import ray

from workers.config import EvaluatorConfig
from workers.unit import CallResult, Failure, SampleResult, Unit, WorkerInfo

logger = logging.getLogger(__name__)

EVALUATOR = "workers.evaluator:Evaluator"


class EvaluatorActor:
    """Hosts an evaluator in a separate process.

    On SIGTERM, which is what a machine that is about to be taken away sends, it finishes the unit that it is working
    on, hands back the others, and leaves.
    """

    def __init__(self, config: EvaluatorConfig, evaluator: str = EVALUATOR) -> None:
        self._config, self._evaluator = config, evaluator
        self._busy = self._leaving = False
        signal.signal(signal.SIGTERM, self._told_to_go)

    def up(self) -> int:
        """The process id; answers as soon as the process runs."""
        return os.getpid()

    def load(self) -> WorkerInfo:
        """Loads model and tasks. Raises ValueError, one line, if they cannot be loaded."""
        module, _, name = self._evaluator.partition(":")
        self.evaluator = vars(importlib.import_module(module))[name](self._config)
        return WorkerInfo(os.getpid(), ray.get_runtime_context().get_node_id(), _memory())

    def evaluate(self, units: list[Unit]) -> CallResult:
        """The results of each unit, or why it has none; an evaluation that fails costs only its own unit."""
        arrays = self.evaluator.arrays
        hits, misses, started = arrays.hits, arrays.misses, time.perf_counter()
        self._busy = True
        outcomes = [None if self._leaving else self._outcome(unit) for unit in units]
        self._busy = False
        if self._leaving:  # the caller ends this process when it reads so; if nobody does, the process ends itself
            threading.Timer(5.0, os._exit, (0,)).start()
        seconds = time.perf_counter() - started
        cache = (arrays.hits - hits, arrays.misses - misses, arrays.lost)
        return CallResult(tuple(outcomes), seconds, *cache, self._leaving)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the evaluator by name."""
        return operator.methodcaller(method, *arguments)(self.evaluator)

    def _outcome(self, unit: Unit) -> list[list[SampleResult]] | Failure:
        try:
            return self.evaluator.evaluate(unit)
        except Exception as error:  # whatever an evaluation raises is its result, not the end of the worker
            lines = str(error).splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
            if _out_of_memory(error):
                return Failure("memory", reason)
            logger.exception("an evaluation failed")
            return Failure("error", reason)

    def _told_to_go(self, *_) -> None:
        self._leaving = True
        if not self._busy:
            sys.exit(0)


def _out_of_memory(error: BaseException) -> bool:
    """Whether this is Python's error, torch's for a GPU (known by name, since not every evaluator imports torch), or
    torch's for a CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def _memory() -> int:
    """Bytes of the GPUs, or else those of the machine that this process may use."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        return sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    total = psutil.virtual_memory().total
    return total if limit == resource.RLIM_INFINITY else min(limit, total)


def start(config: EvaluatorConfig, num_gpus: float = 0.0, evaluator: str = EVALUATOR) -> Any:
    """The handle of a new actor on the connected Ray cluster, with `config.threads` CPUs and `num_gpus` GPUs.

    evaluator: `module:class` of what it hosts. Returns at once; `up` answers once the process runs.
    """
    threads = str(config.threads)
    # Spinning threads on shared cores cost a factor of ten; both are read when torch is first imported.
    env = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    actor = ray.remote(EvaluatorActor).options(
        num_cpus=config.threads, num_gpus=num_gpus, runtime_env={"env_vars": env}
    )
    return actor.remote(config, evaluator)
