"""Who gets which unit when: the dispatcher over workers that only wait, of any number, speed and size."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.waiting import WaitingFleet, result_of
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.faults import DEATHS, TRIES
from orchestrator.dispatch.work import WorkFailed
from orchestrator.spec import WorkerSpec
from orchestrator.storage.journal import Journal
from workers.unit import Failure, PolicySpec, SampleRef

POLICIES = [PolicySpec("namm", theta) for theta in np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)]
REFS = [SampleRef("residence", "train", i) for i in range(11)]
EXPECTED = [[result_of(policy, ref) for ref in REFS] for policy in POLICIES]


@pytest.fixture
def start(tmp_path):
    numbers = itertools.count()

    def one(fleet: WaitingFleet, **settings) -> Dispatcher:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return Dispatcher(fleet, WorkerSpec(**settings), Journal(folder, "job"))

    return one


def told_once(dispatcher: Dispatcher) -> int:
    """Results in the journal's file, each of which must be there once."""
    lines = [line for line in dispatcher.journal.path.read_text().splitlines() if '"policy"' in line]
    assert len({line.partition('"score"')[0][9:] for line in lines}) == len(lines)
    return len(lines)


@pytest.mark.parametrize("workers", [1, 2, 3, 64, 200])
def test_any_number_of_workers(start, workers):
    dispatcher = start(WaitingFleet([0.002] * workers))
    assert dispatcher.evaluate(POLICIES, REFS) == EXPECTED
    assert told_once(dispatcher) == 77


def test_slow_workers_get_less_and_hold_nobody_up(start):
    fleet = WaitingFleet([0.01, 0.01, 0.01, 2.0])
    dispatcher = start(fleet)
    assert dispatcher.evaluate(POLICIES, REFS) == EXPECTED
    slow = sum(len(units) for worker, units in fleet.sent if worker == 3)
    assert slow <= 2 and dispatcher.cost.copies >= 1  # what it held was copied, and the first answer won
    assert 3 in fleet.busy and told_once(dispatcher) == 77  # it was not waited for
    # Its late answer changes nothing.
    more = [SampleRef("topic", "train", i) for i in range(40)]
    assert dispatcher.evaluate(POLICIES, more) == [[result_of(p, ref) for ref in more] for p in POLICIES]
    dispatcher.quiet()
    assert not fleet.busy and told_once(dispatcher) == 77 + 280


def test_equal_workers_copy_next_to_nothing(start):
    dispatcher = start(WaitingFleet([0.02] * 4))
    dispatcher.evaluate(POLICIES, REFS)
    assert dispatcher.cost.copies <= 4


def test_units_travel_together_by_time_never_by_shape(start):
    fleet = WaitingFleet([0.001] * 2)
    dispatcher = start(fleet, candidates_per_call=2, samples_per_call=3)
    many = [SampleRef("residence", "train", i) for i in range(300)]
    assert dispatcher.evaluate(POLICIES, many) == [[result_of(p, ref) for ref in many] for p in POLICIES]
    sizes = [len(units) for _, units in fleet.sent]
    assert sizes[0] == 1 and max(sizes) > 10 and sizes[-1] <= 2  # grows with what is left, and shrinks with it
    shapes = {(len(unit.policies), len(unit.samples)) for _, units in fleet.sent for unit in units}
    assert shapes == {(2, 3), (1, 3)}


def test_candidates_share_a_unit_beside_other_policies(start):
    """A generation asks for candidates and the full cache together."""
    fleet = WaitingFleet([0.001] * 2)
    dispatcher = start(fleet, candidates_per_call=3)
    dispatcher.evaluate([*POLICIES, PolicySpec("full")], REFS)
    shapes = {tuple(policy.name for policy in unit.policies) for _, units in fleet.sent for unit in units}
    assert shapes == {("namm",) * 3, ("namm",), ("full",)} and told_once(dispatcher) == 88


def test_only_policies_that_differ_in_theta_alone_share_a_unit(start):
    """A worker scores a whole unit with one set of statistics: a NAMM and the same one with others stay apart."""
    mean, var = np.zeros(17, np.float32), np.ones(17, np.float32)
    sets = [None, (mean, var, 9.0), (mean.copy(), var.copy(), 9.0), (mean, var, 8.0), (mean, np.nextafter(var, 2), 8.0)]
    memories = [PolicySpec("namm", policy.theta, sets[i // 2]) for i, policy in enumerate([*POLICIES, *POLICIES[:3]])]
    memories += [PolicySpec("namm", memories[-1].theta, sets[-1], budget=0.5)]
    memories += [PolicySpec("namm", memories[-1].theta, sets[-1], budget=0.5, options={"over": "layer"})]
    fleet = WaitingFleet([0.001] * 2)
    start(fleet, candidates_per_call=4).evaluate(memories, REFS)
    number = {id(policy): i for i, policy in enumerate(memories)}
    units = {tuple(number[id(policy)] for policy in unit.policies) for _, units in fleet.sent for unit in units}
    assert units == {(0, 1), (2, 3, 4, 5), (6, 7), (8, 9), (10,), (11,)}


def test_workers_may_join_at_any_time(start):
    fleet = WaitingFleet([0.05])
    dispatcher = start(fleet)
    arrived = []

    def two_more(number: int) -> None:
        arrived.append(number)
        if len(arrived) == 2:
            fleet.join(0.002)
            fleet.join(0.002)

    started = time.monotonic()
    assert dispatcher.evaluate(POLICIES, REFS, two_more) == EXPECTED
    assert time.monotonic() - started < 77 * 0.05 / 2 and dispatcher.workers == 3


def test_whatever_dies_is_done_by_others(start):
    turn = itertools.count(1)
    fleet = WaitingFleet([0.004] * 3, outcome=lambda worker, unit: "die" if next(turn) % 9 == 0 else None)
    dispatcher = start(fleet)
    assert dispatcher.evaluate(POLICIES, REFS) == EXPECTED
    assert dispatcher.cost.lost >= 3 and told_once(dispatcher) == 77
    assert not dispatcher.journal.quarantined  # a death is never the evaluation's fault...


def test_but_an_evaluation_that_kills_whoever_has_it_stops_the_job(start):
    fleet = WaitingFleet([0.002] * 3, outcome=lambda worker, unit: "die" if unit.samples[0] == REFS[4] else None)
    dispatcher = start(fleet)
    with pytest.raises(WorkFailed, match=f"{DEATHS} workers died over residence/train/4.*--resume"):
        dispatcher.evaluate(POLICIES[:1], REFS)
    assert told_once(dispatcher) == 10  # the others were done, and are kept


def test_a_sample_that_is_too_slow_everywhere_is_quarantined_after_three_workers(start, caplog):
    fleet = WaitingFleet([0.002] * 2, outcome=lambda worker, unit: "hang" if unit.samples[0] == REFS[4] else None)
    dispatcher = start(fleet, timeout=0.2)
    results = dispatcher.evaluate(POLICIES, REFS)
    assert all(row[4] is None for row in results)
    assert [row[:4] + row[5:] for row in results] == [row[:4] + row[5:] for row in EXPECTED]
    assert f"not done within 0 s on {TRIES} workers" in caplog.text or "residence/train/4" in caplog.text
    workers = {worker for worker, units in fleet.sent if [u.samples[0] for u in units] == [REFS[4]]}
    assert len(workers) >= TRIES
    assert set(dispatcher.journal.quarantined) == {REFS[4]}


def test_a_quarantined_sample_does_not_change_the_units_of_others(start):
    """The samples of a failed unit go together, and the other units keep their shape."""
    sick = Failure("error", "ValueError: no such text")
    fleet = WaitingFleet([0.002] * 2, lambda worker, unit: sick if REFS[4] in unit.samples else None)
    dispatcher = start(fleet, samples_per_call=3)
    first = dispatcher.evaluate(POLICIES[:2], REFS)
    again = dispatcher.evaluate(POLICIES, REFS)
    assert [[r is None for r in row] for row in (*first, *again)] == [[3 <= i < 6 for i in range(11)]] * 9
    shapes = {tuple(ref.index for ref in unit.samples) for _, units in fleet.sent for unit in units}
    assert shapes == {(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10)}


def test_out_of_memory_goes_to_a_larger_worker(start, caplog):
    large = 8 * 2**30

    def outcome(worker, unit):
        small = fleet.memory[worker] < large
        return Failure("memory", "CUDA out of memory") if small and unit.samples[0] == REFS[2] else None

    fleet = WaitingFleet([0.002, 0.002, 0.01], outcome, memory=[2**30, 2**30, large])
    dispatcher = start(fleet)
    assert dispatcher.evaluate(POLICIES, REFS) == EXPECTED
    assert "goes to a larger worker" in caplog.text and not dispatcher.journal.quarantined


def test_out_of_memory_everywhere_stops_the_job_and_names_the_setting(start):
    outcome = {REFS[2]: Failure("memory", "CUDA out of memory")}
    fleet = WaitingFleet([0.002] * 2, lambda worker, unit: outcome.get(unit.samples[0]), memory=[2**30, 2**30])
    with pytest.raises(WorkFailed, match="workers.candidates_per_call or workers.samples_per_call"):
        start(fleet).evaluate(POLICIES, REFS)


def test_an_error_on_one_worker_is_tried_on_another(start):
    sick = Failure("error", "RuntimeError: a broken GPU")
    fleet = WaitingFleet([0.004, 0.004], lambda worker, unit: sick if worker == 0 and len(fleet.sent) < 4 else None)
    dispatcher = start(fleet)
    assert dispatcher.evaluate(POLICIES, REFS) == EXPECTED
    assert not dispatcher.journal.quarantined


def test_no_worker_at_all_is_waited_for_then_given_up(start):
    fleet = WaitingFleet([])
    dispatcher = start(fleet, patience=0.5)
    started = time.monotonic()
    with pytest.raises(WorkFailed, match=r"no worker for .*--resume"):
        dispatcher.evaluate(POLICIES, REFS)
    assert 0.5 <= time.monotonic() - started < 5


def test_too_many_failing_samples_are_something_else(start):
    fleet = WaitingFleet([0.0005] * 2, lambda worker, unit: Failure("error", "FileNotFoundError: data"))
    with pytest.raises(WorkFailed, match="more than 100 samples failed.*FileNotFoundError"):
        start(fleet).evaluate(POLICIES[:1], [SampleRef("residence", "train", i) for i in range(200)])


def test_the_dispatcher_loads_neither_ray_nor_a_model():
    """Whoever hands out work to another fleet, or only reads a run, does not wait for what it does not use."""
    code = "import sys, orchestrator.dispatch.dispatcher\n"
    code += "heavy = {'ray', 'torch', 'transformers', 'mlflow'} & set(sys.modules)\n"
    code += "sys.exit(', '.join(sorted(heavy)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
