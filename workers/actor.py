"""The Ray actor around one evaluator. Knows nothing of searches: units in, results out."""

from __future__ import annotations

import os
import time

import ray

from workers.config import EvaluatorConfig
from workers.unit import PolicySpec, SampleRef, SampleResult, Unit


class EvaluatorActor:
    """Hosts an `Evaluator` in a process of its own."""

    def __init__(self, config: EvaluatorConfig) -> None:
        from workers.evaluator import Evaluator  # here, so that a head node needs no torch

        self.evaluator = Evaluator(config)

    def ready(self) -> int:
        """The process id, once the model is loaded."""
        return os.getpid()

    def evaluate(self, units: list[Unit]) -> tuple[list[list[list[SampleResult]]], dict[str, float]]:
        """Results[unit][policy][sample], and what the call cost: seconds, cache hits and misses."""
        before, started = (self.evaluator.prompts.hits, self.evaluator.prompts.misses), time.perf_counter()
        results = [self.evaluator.evaluate(unit) for unit in units]
        return results, {
            "seconds": time.perf_counter() - started,
            "hits": self.evaluator.prompts.hits - before[0],
            "misses": self.evaluator.prompts.misses - before[1],
        }

    def statistics(self, samples: list[SampleRef]):
        """See `Evaluator.statistics`."""
        return self.evaluator.statistics(samples)

    def kept_map(self, spec: PolicySpec, ref: SampleRef):
        """See `Evaluator.kept_map`."""
        return self.evaluator.kept_map(spec, ref)


def start(config: EvaluatorConfig, num_gpus: float = 0.0):
    """A new actor on the connected Ray cluster, one CPU thread (or more) and a share of a GPU each."""
    threads = str(config.threads)
    # Spinning threads on shared cores cost a factor of ten; both are read when torch is first imported.
    env = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    actor = ray.remote(EvaluatorActor).options(
        num_cpus=config.threads, num_gpus=num_gpus, runtime_env={"env_vars": env}
    )
    return actor.remote(config)
