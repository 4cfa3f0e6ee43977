"""The journal: what was put is there after any death; what is damaged is not believed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.storage.journal import Journal, Lock, in_use, policy_key
from workers.unit import PolicySpec, SampleRef, SampleResult


def result(index: int, score: float = 0.25) -> SampleResult:
    return SampleResult("residence", "train", index, score, -0.1 / 3, 0.5, [0.4, 0.6], 100, "Paris →")


def ref(index: int) -> SampleRef:
    return SampleRef("residence", "train", index)


def test_what_was_put_is_there_when_opened_again(tmp_path):
    journal = Journal(tmp_path, "job")
    assert journal.put([("a", result(0)), ("a", result(1)), ("b", result(0))]) == [
        result(0),
        result(1),
        result(0),
    ]
    journal.close()
    again = Journal(tmp_path, "job")
    assert len(again) == 3
    assert again.get("a", ref(1)) == result(1)  # floats to the last bit
    assert again.get("b", ref(1)) is None


def test_twice_computed_is_once_counted(tmp_path):
    journal = Journal(tmp_path, "job")
    journal.put([("a", result(0))])
    assert journal.put([("a", result(0)), ("a", result(0)), ("a", result(2))]) == [result(2)]
    journal.close()
    assert (tmp_path / "journal.jsonl").read_text().count('"policy"') == 2


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_is_left_out_and_written_over(tmp_path, caplog, cut):
    journal = Journal(tmp_path, "job")
    journal.put([("a", result(0))])
    journal.put([("a", result(1))])
    journal.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(tmp_path, "job")
    assert again.get("a", ref(0)) == result(0) and again.get("a", ref(1)) is None
    assert "1 damaged line" in caplog.text
    again.put([("a", result(1))])
    again.close()
    assert len(Journal(tmp_path, "job")) == 2


def test_a_flipped_bit_is_noticed(tmp_path, caplog):
    journal = Journal(tmp_path, "job")
    journal.put([("a", result(0, score=0.25)), ("a", result(1))])
    journal.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"score": 0.25', b'"score": 0.75', 1))
    again = Journal(tmp_path, "job")
    assert again.get("a", ref(0)) is None and again.get("a", ref(1)) == result(1)
    assert "damaged" in caplog.text


def test_one_live_job_a_folder(tmp_path):
    assert not in_use(tmp_path)
    lock = Lock(tmp_path)
    assert in_use(tmp_path)
    with pytest.raises(ValueError, match="in use by a live job"):
        Lock(tmp_path)
    lock.close()
    assert not in_use(tmp_path)
    Lock(tmp_path).close()


def test_another_jobs_results_are_refused(tmp_path):
    Journal(tmp_path, "job").close()
    with pytest.raises(ValueError, match="holds another job"):
        Journal(tmp_path, "other")
    Journal(tmp_path, "job").close()


def test_a_journal_whose_name_is_damaged_is_refused_one_that_was_resumed_is_not(tmp_path):
    Journal(tmp_path, "job").close()
    path = tmp_path / "journal.jsonl"
    damage = path.read_bytes().replace(b"job", b"jab", 1)
    path.write_bytes(damage)
    with pytest.raises(ValueError, match="does not say which job"):
        Journal(tmp_path, "job")
    path.unlink()
    Journal(tmp_path, "job").close()
    journal = Journal(tmp_path, "job")  # goes on, and says so
    journal.put([("a", result(0))])
    journal.close()
    path.write_bytes(path.read_bytes().replace(b"job", b"jab", 1))
    assert len(Journal(tmp_path, "job")) == 1


def told(generation: int) -> dict:
    return {"generation": generation, "fitness": [0.1 / 3, None]}


def generations(tmp_path, number: int) -> None:
    journal = Journal(tmp_path, "job")
    for g in range(number):
        journal.put([("a", result(g)), ("b", result(g))])
        journal.tell(told(g + 1), [ref(g)])
    journal.close()


def test_generations_told_are_there_and_their_results_leave_memory(tmp_path):
    generations(tmp_path, 3)
    again = Journal(tmp_path, "job")
    assert again.told == [told(1), told(2), told(3)]  # floats to the last bit, missing fitness as None
    assert len(again) == 6 and again.get("a", ref(1)) is None


def test_a_damaged_generation_is_told_again_from_its_results(tmp_path, caplog):
    generations(tmp_path, 3)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"generation": 2', b'"generation": 9'))
    again = Journal(tmp_path, "job")
    assert again.told == [told(1)] and "1 damaged line" in caplog.text
    for g in (1, 2):
        assert again.get("a", ref(g)) == result(g) and again.get("b", ref(g)) == result(g)
        again.tell(told(g + 1), [ref(g)])
    again.close()
    last = Journal(tmp_path, "job")
    assert last.told == [told(1), told(2), told(3)] and len(last) == 6


def test_quarantine_and_facts_last(tmp_path):
    journal = Journal(tmp_path, "job")
    journal.quarantine((ref(3), ref(4)), "it fails")
    assert journal.fact("statistics", lambda: [0.1, 1 / 3]) == [0.1, 1 / 3]
    journal.close()
    again = Journal(tmp_path, "job")
    assert again.quarantined == {ref(3): "it fails", ref(4): "it fails"}
    assert again.fact("statistics", lambda: 1 / 0) == [0.1, 1 / 3]


def test_policies_are_told_apart_by_all_that_changes_scores():
    theta, other = np.zeros(5, np.float32), np.ones(5, np.float32)
    statistics = (np.zeros(2), np.ones(2), 7.0)
    policies = [
        PolicySpec("namm", theta),
        PolicySpec("namm", other),
        PolicySpec("namm", theta, statistics),
        PolicySpec("namm", theta, (np.zeros(2), np.full(2, 2.0), 7.0)),
        PolicySpec("h2o", budget=0.3),
        PolicySpec("h2o", budget=0.30000001),
        PolicySpec("l2", budget=0.3),
        PolicySpec("l2", budget=0.3, options={"window": 64}),
        PolicySpec("l2", budget=0.3, options={"window": 32}),
    ]
    keys = [policy_key(policy) for policy in policies]
    assert len(set(keys)) == len(keys)
    assert policy_key(dataclasses.replace(policies[2], theta=theta.copy())) == keys[2]
    options = {"window": 64, "sinks": 2}
    swapped = dict(reversed(options.items()))
    assert policy_key(PolicySpec("l2", options=options)) == policy_key(PolicySpec("l2", options=swapped))


def test_keys_of_journals_that_exist_stay():
    """A run that was begun before policies had options must find its results again."""
    assert policy_key(PolicySpec("full")) == "ae6b41be519149cc8f734ec6"
    assert policy_key(PolicySpec("h2o", budget=0.3)) == "7348818bb0df213e4b33dff2"
    statistics = (np.zeros(2, np.float32), np.ones(2, np.float32), 7.0)
    assert policy_key(PolicySpec("namm", np.arange(5, dtype=np.float32), statistics)) == "b57d5edad3a1169b9d1d5081"
