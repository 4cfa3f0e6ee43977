"""A fleet over several Ray nodes, which come, are drained, and die."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from benchmarks.waiting import result_of
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.ray_connection import connected
from orchestrator.dispatch.ray_fleet import RayFleet
from orchestrator.spec import WorkerSpec
from orchestrator.storage.journal import Journal
from workers.config import EvaluatorConfig, ModelConfig
from workers.unit import PolicySpec, SampleRef

POLICIES = [PolicySpec("namm", theta) for theta in np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)]


@pytest.fixture
def cluster(monkeypatch):
    """A head without room for workers."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # joined by address it would be asked for a token
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        with connected(made.address, "namm-test-nodes"):
            yield made
    finally:
        made.shutdown()


class Evaluations:
    """A run of evaluations in a thread of its own."""

    def __init__(self, dispatcher: Dispatcher, samples: int) -> None:
        self.samples = [SampleRef("topic", "train", i) for i in range(samples)]
        self.arrived, self.results, self._dispatcher = 0, None, dispatcher
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.results = self._dispatcher.evaluate(POLICIES, self.samples, self._count)

    def _count(self, more: int) -> None:
        self.arrived += more

    def until(self, what, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end and self._thread.is_alive(), "did not happen in time"
            time.sleep(0.05)

    def finish(self) -> None:
        self._thread.join(120)
        assert self.results == [[result_of(policy, ref) for ref in self.samples] for policy in POLICIES]


def test_nodes_come_are_drained_and_die(cluster, tmp_path, caplog):
    """No count of workers is given: there are as many as the nodes have room for."""
    caplog.set_level(logging.WARNING)
    config = EvaluatorConfig(ModelConfig("none"), {"seconds": 0.1})
    spec = WorkerSpec()
    with closing(RayFleet(config, spec, "benchmarks.waiting:WaitingEvaluator")) as fleet:
        dispatcher = Dispatcher(fleet, spec, Journal(tmp_path, "job"))
        run = Evaluations(dispatcher, 150)  # 600 evaluations, a minute for one worker
        time.sleep(1)
        assert dispatcher.workers == 0  # there is no room yet, and that is waited for
        first = cluster.add_node(num_cpus=1)
        run.until(lambda: run.arrived > 0)
        second = cluster.add_node(num_cpus=2)
        run.until(lambda: dispatcher.workers == 3)
        assert fleet.wanted == 3
        client = ray._private.worker.global_worker.gcs_client
        accepted, why = client.drain_node(second.node_id, 2, "test", int(time.time() * 1000) + 60_000)  # 2: preemption
        assert accepted, why
        run.until(lambda: dispatcher.workers == 1)
        assert caplog.text.count("which is being drained") == 2
        third = cluster.add_node(num_cpus=2)
        run.until(lambda: dispatcher.workers == 3)
        cluster.remove_node(third, allow_graceful=False)
        run.finish()
        assert first.node_id and dispatcher.cost.evaluations == 600 and not dispatcher.journal.quarantined
