"""The Ray actor around one evaluator. Knows nothing of searches: units in, results out."""

from __future__ import annotations

import importlib
import logging
import os
import resource
import signal
import sys
import threading
import time

import psutil
import ray

from workers.config import EvaluatorConfig
from workers.unit import CallResult, Failure, Unit, WorkerInfo

logger = logging.getLogger(__name__)

EVALUATOR = "workers.evaluator:Evaluator"


class EvaluatorActor:
    """Hosts an evaluator in a process of its own.

    Told to go (SIGTERM, which is how a machine that is taken away says so), it finishes the unit at hand, hands
    back the others, and leaves.
    """

    def __init__(self, config: EvaluatorConfig, evaluator: str = EVALUATOR) -> None:
        self._config, self._evaluator = config, evaluator
        self._busy = self._leaving = False
        signal.signal(signal.SIGTERM, self._told_to_go)

    def up(self) -> int:
        """The process id, as soon as the process is there."""
        return os.getpid()

    def load(self) -> WorkerInfo:
        """Loads model and tasks. Raises ValueError, one line, when they cannot be loaded."""
        module, _, name = self._evaluator.partition(":")
        self.evaluator = getattr(importlib.import_module(module), name)(self._config)
        return WorkerInfo(os.getpid(), ray.get_runtime_context().get_node_id(), _memory())

    def evaluate(self, units: list[Unit]) -> CallResult:
        """What came of each unit."""
        prompts = self.evaluator.arrays
        hits, misses, started = prompts.hits, prompts.misses, time.perf_counter()
        self._busy = True
        outcomes = [None if self._leaving else self._outcome(unit) for unit in units]
        self._busy = False
        if self._leaving:  # whoever asked ends this process on reading so; if nobody does, it ends itself
            threading.Timer(5.0, os._exit, (0,)).start()
        seconds = time.perf_counter() - started
        cache = (prompts.hits - hits, prompts.misses - misses, prompts.lost)
        return CallResult(tuple(outcomes), seconds, *cache, self._leaving)

    def ask(self, method: str, *arguments):
        """Calls a method of the evaluator."""
        return getattr(self.evaluator, method)(*arguments)

    def _outcome(self, unit: Unit):
        try:
            return self.evaluator.evaluate(unit)
        except Exception as error:  # whatever an evaluation raises is an answer, not the end of the worker
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
    """Python's own error, torch's for a GPU (by its name: a worker that only waits has no torch), or for a CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def _memory() -> int:
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        return sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    total = psutil.virtual_memory().total
    return total if limit == resource.RLIM_INFINITY else min(limit, total)


def start(config: EvaluatorConfig, num_gpus: float = 0.0, evaluator: str = EVALUATOR):
    """A new actor on the connected Ray cluster, one CPU thread (or more) and a share of a GPU each.

    evaluator: `module:class` of what it hosts. Returns at once; `up` answers when the process is there.
    """
    threads = str(config.threads)
    # Spinning threads on shared cores cost a factor of ten; both are read when torch is first imported.
    env = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    actor = ray.remote(EvaluatorActor).options(
        num_cpus=config.threads, num_gpus=num_gpus, runtime_env={"env_vars": env}
    )
    return actor.remote(config, evaluator)
