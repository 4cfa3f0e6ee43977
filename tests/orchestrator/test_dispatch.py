"""Dispatch over real Ray actors: workers may die, be slow, or fail; every result is counted once."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
import ray

from namm_core.config import NammConfig
from orchestrator.cluster import connected
from orchestrator.dispatch import Dispatcher, WorkFailed
from orchestrator.journal import Journal
from orchestrator.spec import WorkerSpec
from workers.config import EvaluatorConfig, ModelConfig
from workers.unit import PolicySpec, SampleRef

TASKS = {"source": "recall", "tokens": 200, "facts": 6, "kinds": ["residence"]}
REFS = [SampleRef("residence", "train", i) for i in range(12)]


@pytest.fixture(scope="module")
def cluster():
    with connected("local", "namm-test-dispatch", cpus=2):
        yield


@pytest.fixture
def config(small_model) -> EvaluatorConfig:
    return EvaluatorConfig(ModelConfig(str(small_model), ntk_alpha=4), TASKS, NammConfig(update_interval=64))


@pytest.fixture
def policies() -> list[PolicySpec]:
    draws = np.random.default_rng(0).standard_normal((5, 4172)).astype(np.float32) * 0.065
    return [PolicySpec("namm", theta) for theta in draws]


@pytest.fixture
def expected(cluster, config, policies, tmp_path_factory):
    dispatcher = Dispatcher(config, WorkerSpec(count=1), Journal(tmp_path_factory.mktemp("expected"), "job"))
    results = dispatcher.evaluate(policies, REFS)
    dispatcher.close()
    return results


@pytest.mark.parametrize("candidates, samples", [(1, 1), (2, 1), (1, 5), (3, 4)])
def test_any_unit_shape_and_no_divisibility(cluster, config, policies, expected, tmp_path, candidates, samples):
    """5 policies and 12 samples in units that divide neither; scores do not depend on who computes them."""
    spec = WorkerSpec(count=2, candidates_per_call=candidates, samples_per_call=samples)
    dispatcher = Dispatcher(config, spec, Journal(tmp_path, "job"))
    arrived = []
    results = dispatcher.evaluate(policies, REFS, arrived.append)
    assert sum(arrived) == len(policies) * len(REFS) == dispatcher.cost.evaluations
    for row, wanted in zip(results, expected, strict=True):
        assert [(r.index, r.score, r.prediction) for r in row] == [(r.index, r.score, r.prediction) for r in wanted]
    if (candidates, samples) == (1, 1):
        assert results == expected
    dispatcher.close()


def test_what_the_journal_knows_is_not_asked_again(cluster, config, policies, expected, tmp_path):
    dispatcher = Dispatcher(config, WorkerSpec(count=1), Journal(tmp_path, "job"))
    dispatcher.evaluate(policies[:2], REFS[:6])
    assert dispatcher.cost.evaluations == 12
    assert dispatcher.evaluate(policies, REFS) == expected
    assert dispatcher.cost.evaluations == 60
    dispatcher.close()


def test_killed_workers_are_replaced_and_nothing_is_lost(cluster, config, policies, expected, tmp_path, caplog):
    dispatcher = Dispatcher(config, WorkerSpec(count=2), Journal(tmp_path, "job"))
    arrived, killed = [], threading.Event()

    def kill_one(more: int) -> None:
        arrived.append(more)
        if sum(arrived) >= 10 and not killed.is_set():
            killed.set()
            pids = ray.get([worker.ready.remote() for worker in dispatcher._workers[:1]])
            os.kill(pids[0], signal.SIGKILL)

    results = dispatcher.evaluate(policies, REFS, kill_one)
    assert killed.is_set() and results == expected
    assert dispatcher.cost.evaluations == len(dispatcher.journal) == 60
    assert not dispatcher.quarantined
    dispatcher.close()


def test_a_worker_that_hangs_is_killed_not_waited_for(cluster, config, policies, expected, tmp_path, caplog):
    dispatcher = Dispatcher(config, WorkerSpec(count=1), Journal(tmp_path, "job"))
    dispatcher.spec = WorkerSpec(count=1, timeout=6.0)  # after the model was loaded under the usual limit
    pid = ray.get(dispatcher._workers[0].ready.remote())
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    results = dispatcher.evaluate(policies[:1], REFS[:2])
    assert results == [row[:2] for row in expected[:1]]
    assert time.monotonic() - started < 60
    assert "did not answer within 6 s" in caplog.text
    dispatcher.close()


def test_a_sample_that_always_fails_is_quarantined_for_all(cluster, config, policies, expected, tmp_path, caplog):
    bad = SampleRef("residence", "no-such-split", 0)
    dispatcher = Dispatcher(config, WorkerSpec(count=2), Journal(tmp_path, "job"))
    results = dispatcher.evaluate(policies, [*REFS[:3], bad])
    assert [row[:3] for row in results] == [row[:3] for row in expected]
    assert all(row[3] is None for row in results)
    assert dispatcher.quarantined == {bad} and "residence/no-such-split/0" in caplog.text
    dispatcher.close()


def test_a_model_that_cannot_load_is_one_clear_line(cluster, config, tmp_path):
    from dataclasses import replace

    broken = replace(config, model=ModelConfig(str(tmp_path / "nothing")))
    with pytest.raises((ValueError, WorkFailed), match="nothing does not exist"):
        Dispatcher(broken, WorkerSpec(count=1), Journal(tmp_path, "job"))
