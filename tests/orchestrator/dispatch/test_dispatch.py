"""Dispatch over real Ray actors: workers may die, be slow, or fail; every result is counted once."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest

from benchmarks.waiting import result_of
from namm_core.config import NammConfig
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.ray_connection import connected
from orchestrator.dispatch.ray_fleet import RayFleet
from orchestrator.services import redis_server as services
from orchestrator.spec import WorkerSpec
from orchestrator.storage.journal import Journal
from workers import actor
from workers.config import EvaluatorConfig, ModelConfig
from workers.unit import PolicySpec, SampleRef, Unit

WAITING = "benchmarks.waiting:WaitingEvaluator"
TASKS = {"source": "recall", "tokens": 200, "facts": 6, "kinds": ["residence"]}
DRAWS = np.random.default_rng(0).standard_normal((5, 4172)).astype(np.float32) * 0.065
POLICIES = [PolicySpec("namm", theta) for theta in DRAWS]
REFS = [SampleRef("residence", "train", i) for i in range(12)]
WAITED = [[result_of(policy, ref) for ref in REFS] for policy in POLICIES]


@pytest.fixture(scope="module")
def cluster():
    with connected("local", "namm-test-dispatch", cpus=2):
        yield


def settings(model) -> EvaluatorConfig:
    return EvaluatorConfig(ModelConfig(str(model), ntk_alpha=4), TASKS, NammConfig(update_interval=64))


@pytest.fixture
def config(small_model) -> EvaluatorConfig:
    return settings(small_model)


@pytest.fixture
def start(cluster, config, tmp_path):
    """Dispatchers over real actors, ended afterwards: start(**workers' settings)."""
    with ExitStack() as stack:

        def one(evaluator: str = actor.EVALUATOR, **settings) -> Dispatcher:
            spec = WorkerSpec(**{"count": 2, **settings})
            journal = stack.enter_context(closing(Journal(tmp_path, "job")))
            made_of = config if evaluator == actor.EVALUATOR else replace(config, tasks={"seconds": 0.1})
            fleet = stack.enter_context(closing(RayFleet(made_of, spec, evaluator)))
            return Dispatcher(fleet, spec, journal)

        yield one
    psutil.wait_procs(workers(), timeout=20)


@pytest.fixture(scope="module")
def expected(cluster, small_model):
    """Results of the policies on REFS, computed here, without Ray."""
    from workers.evaluator import Evaluator

    evaluator = Evaluator(settings(small_model))
    return [[evaluator.evaluate(Unit((policy,), (ref,)))[0][0] for ref in REFS] for policy in POLICIES]


def workers(title: str = "ray::EvaluatorActor") -> list[psutil.Process]:
    """The workers of this test's Ray whose title begins so; Ray adds what they are doing."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                found.append(process)
    return found


class Signals:
    """From a thread of its own, sends a signal to a worker in the middle of an evaluation."""

    def __init__(self, number: signal.Signals) -> None:
        self.victim: psutil.Process | None = None
        self._number = number
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        while not (busy := workers("ray::EvaluatorActor.evaluate")):
            time.sleep(0.02)
        busy[0].send_signal(self._number)
        self.victim = busy[0]

    def gone(self, seconds: float = 30.0) -> bool:
        self._thread.join()
        self.victim.wait(seconds)
        return not self.victim.is_running()


@pytest.mark.parametrize("candidates, samples", [(1, 1), (2, 1), (1, 5), (3, 4)])
def test_any_unit_shape_and_no_divisibility(start, expected, candidates, samples):
    """5 policies and 12 samples in units that divide neither; scores do not depend on who computes them."""
    dispatcher = start(candidates_per_call=candidates, samples_per_call=samples)
    arrived = []
    results = dispatcher.evaluate(POLICIES, REFS, arrived.append)
    assert sum(arrived) == len(POLICIES) * len(REFS) == dispatcher.cost.evaluations
    for row, wanted in zip(results, expected, strict=True):
        assert [(r.index, r.score, r.prediction) for r in row] == [(r.index, r.score, r.prediction) for r in wanted]
    if (candidates, samples) == (1, 1):
        assert results == expected


def test_what_the_journal_knows_is_not_asked_again(start, expected):
    dispatcher = start(count=1)
    dispatcher.evaluate(POLICIES[:2], REFS[:6])
    assert dispatcher.cost.evaluations == 12
    assert dispatcher.evaluate(POLICIES, REFS) == expected
    assert dispatcher.cost.evaluations == 60


def test_groups_are_asked_for_at_once_and_come_back_apart(start):
    dispatcher, arrived = start(WAITING), []
    groups = [(POLICIES[:3], REFS[:4]), (POLICIES[3:], REFS[2:9]), ([], REFS), (POLICIES[:1], REFS[3:6])]
    found = dispatcher.evaluate_groups(groups, arrived.append)
    assert found == [
        [row[:4] for row in WAITED[:3]],
        [row[2:9] for row in WAITED[3:]],
        [],
        [WAITED[0][3:6]],
    ]
    assert sum(arrived) == 3 * 4 + 2 * 7 + 3
    # One sample of the last group is in the first one, too: it may be computed twice, and counts once.
    assert dispatcher.cost.evaluations == len(dispatcher.journal) == 3 * 4 + 2 * 7 + 2
    assert dispatcher.evaluate_groups(groups) == found and len(dispatcher.journal) == 28


def test_killed_workers_are_replaced_and_nothing_is_lost(start):
    dispatcher, kill = start(WAITING), Signals(signal.SIGKILL)
    assert dispatcher.evaluate(POLICIES, REFS) == WAITED
    assert kill.gone() and dispatcher.cost.lost == 1
    assert dispatcher.cost.evaluations == len(dispatcher.journal) == 60
    assert not dispatcher.journal.quarantined


def test_a_worker_that_is_told_to_go_finishes_its_unit_and_hands_back_the_rest(start, caplog):
    dispatcher, tell = start(WAITING, count=1), Signals(signal.SIGTERM)
    assert dispatcher.evaluate(POLICIES, REFS) == WAITED
    assert tell.gone() and "was told to go" in caplog.text
    assert dispatcher.cost.evaluations == 60 and dispatcher.cost.lost == 1


def test_a_worker_that_is_told_to_go_while_idle_goes(start):
    dispatcher = start(WAITING, count=1)
    dispatcher.evaluate(POLICIES[:1], REFS[:1])
    (idle,) = workers()
    idle.terminate()
    idle.wait(10)
    assert dispatcher.evaluate(POLICIES[:1], REFS) == WAITED[:1]


def test_a_worker_that_hangs_is_killed_not_waited_for(start, caplog):
    dispatcher, stop = start(WAITING, count=1, timeout=2.0), Signals(signal.SIGSTOP)
    started = time.monotonic()
    assert dispatcher.evaluate(POLICIES, REFS) == WAITED
    assert time.monotonic() - started < 90
    assert "did not answer within" in caplog.text and not dispatcher.journal.quarantined
    assert stop.gone()


def test_a_sample_that_always_fails_is_quarantined_for_all(start, expected, caplog):
    bad = SampleRef("residence", "no-such-split", 0)
    dispatcher = start()
    results = dispatcher.evaluate(POLICIES, [*REFS[:3], bad])
    assert [row[:3] for row in results] == [row[:3] for row in expected]
    assert all(row[3] is None for row in results)
    assert set(dispatcher.journal.quarantined) == {bad} and "residence/no-such-split/0" in caplog.text


def test_a_model_that_cannot_load_is_one_clear_line(cluster, config, tmp_path):
    broken = replace(config, model=ModelConfig(str(tmp_path / "nothing")))
    with closing(RayFleet(broken, WorkerSpec(count=1))) as fleet:
        dispatcher = Dispatcher(fleet, WorkerSpec(count=1), Journal(tmp_path, "job"))
        with pytest.raises(ValueError, match="nothing does not exist"):
            dispatcher.evaluate(POLICIES[:1], REFS[:1])


def test_a_question_is_asked_again_where_its_worker_died(start):
    dispatcher = start(count=1)
    dispatcher.evaluate(POLICIES[:1], REFS[:1])
    for process in workers():
        process.kill()
        process.wait(10)
    mean, var, count = dispatcher.ask("statistics", REFS)
    assert mean.shape == var.shape == (17,) and count > 0 and dispatcher.cost.lost == 1
    with pytest.raises(ValueError, match="keeps every token"):
        dispatcher.ask("reading", PolicySpec("full"), REFS[0])


def test_redis_may_go_and_come_back(cluster, config, expected, tmp_path, caplog):
    """A real server on a port: killed, the workers make their own prompts; started again, they share them again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [services.redis_program(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]

    def serve() -> subprocess.Popen:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tmp_path)

    server = serve()
    try:
        services.check_redis(url := f"redis://127.0.0.1:{port}/0", 10)
        spec = WorkerSpec(count=1)
        with closing(RayFleet(replace(config, redis_url=url), spec)) as fleet:
            dispatcher = Dispatcher(fleet, spec, Journal(tmp_path, "job"))
            assert dispatcher.evaluate(POLICIES[:1], REFS[:4]) == [expected[0][:4]]
            server.kill()
            server.wait()
            assert dispatcher.evaluate(POLICIES[:1], REFS[:8]) == [expected[0][:8]]
            assert caplog.messages.count("Redis is lost: workers go on with prompts of their own") == 1
            server = serve()
            services.check_redis(url, 10)
            time.sleep(5.5)  # a worker leaves a lost Redis alone for 5 s
            assert dispatcher.evaluate(POLICIES[:1], REFS) == [expected[0]]
            assert caplog.messages[-1] == "Redis is back for all workers"
    finally:
        server.kill()
        server.wait()


def test_a_fleet_that_is_closed_leaves_no_process(start):
    dispatcher = start(WAITING)
    dispatcher.evaluate(POLICIES[:1], REFS)
    before = workers()
    assert before
    dispatcher.fleet.close()
    assert not psutil.wait_procs(before, timeout=20)[1]


def test_prompts_are_made_once_and_by_all_workers(cluster, config, expected, tmp_path):
    """Both workers share them out; one dies, and whoever evaluates in its place still finds every prompt."""
    with services.private_redis() as url:
        spec = WorkerSpec(count=2)
        with closing(RayFleet(replace(config, redis_url=url), spec)) as fleet:
            dispatcher, seen = Dispatcher(fleet, spec, Journal(tmp_path, "job")), []
            dispatcher.wait_for(2)
            workers()[0].kill()
            dispatcher.prepare(REFS, seen.append)
            assert len(seen) == 2 and sum(seen) >= len(REFS) == dispatcher.cost.misses
            dispatcher.wait_for(2)
            assert dispatcher.evaluate(POLICIES[:1], REFS) == [expected[0]]
            for policy in POLICIES[1:]:
                if not dispatcher.cost.hits:  # the death was noticed late: nobody had to evaluate in its place
                    dispatcher.wait_for(2)
                    dispatcher.evaluate([policy], REFS)
            assert dispatcher.cost.misses == len(REFS) and dispatcher.cost.hits >= 1
