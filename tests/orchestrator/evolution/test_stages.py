"""Stages, what ends them, and restarts: over an evaluator whose landscape is known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from namm_core.config import from_mapping
from orchestrator import spec
from orchestrator.evolution.samples import statistics_samples, training_samples, validation_samples
from orchestrator.evolution.stage import theta_digest
from orchestrator.search.algorithms.cma_es import CMAESConfig
from orchestrator.spec import JobSpec, RestartSpec, StageSpec, StopSpec, ValidationSpec
from tests.orchestrator.landscape import STATISTICS, Noisy, job, run, timeless
from workers.unit import PolicySpec

THREE = (
    StageSpec(("residence",), "one", generations=5),
    StageSpec(("residence", "topic"), "two", generations=4, samples=5, sigma="keep"),
    StageSpec(("residence", "topic", "colour"), generations=3, samples=1, population=12),
)


# Each stage from the last one's mean


def test_each_stage_starts_from_the_last_ones_mean_with_the_same_statistics():
    landscape, ends = Noisy(), []
    outcome, records = run(job(stages=THREE), landscape, ends=ends)
    assert [s["name"] for s in outcome.stages] == ["one", "two", "stage3"]
    assert [(s["first"], s["generations"], s["ended"]) for s in outcome.stages] == [
        (1, 5, "stage"),
        (6, 4, "stage"),
        (10, 3, "job"),
    ]
    firsts = [next(r for r in records if r["stage"] == s["name"]) for s in outcome.stages]
    lasts = [[r for r in records if r["stage"] == s["name"]][-1] for s in outcome.stages]
    assert firsts[0]["start"] == theta_digest(np.zeros(10))
    for before, (_, _, mean), after, entry in zip(lasts, ends, firsts[1:], outcome.stages[1:], strict=False):
        assert after["start"] == before["theta"] == theta_digest(mean.theta) == entry["start"]
    # ... from the mean, though what is deployed of a stage is its best on validation
    assert any(theta_digest(best.theta) != theta_digest(mean.theta) for _, best, mean in ends)
    assert np.array_equal(outcome.best.theta, ends[-1][1].theta)
    given = {id(policy.statistics) for policy in landscape.policies if policy.theta is not None}
    assert given == {id(STATISTICS)}
    # The vector that the next stage's first generation calls its mean is the very one.
    means = [p for p in landscape.policies if p.theta is not None and theta_digest(p.theta) == firsts[1]["start"]]
    assert len(means) >= 2  # looked at in the end of one stage, and compared at the beginning of the next


def test_a_stage_has_its_own_tasks_samples_and_population():
    landscape = Noisy()
    outcome, records = run(job(stages=THREE), landscape)
    rows = [(policies, samples) for policies, samples in landscape.asked if samples[0].split == "train"]
    for record, (policies, samples) in zip(records, rows, strict=True):
        stage = job(stages=THREE).plan[record["stage_number"] - 1]
        assert policies == stage.population + 2 == record["population"] + 2
        assert len(samples) == len(stage.train) * stage.samples and {ref.task for ref in samples} == set(stage.train)
        assert set(record["tasks"]) == set(record["base"]) == set(record["normalised"]) == set(stage.train)
    seen = [ref for _, samples in rows for ref in samples]
    assert len(seen) == len(set(seen))  # fresh samples in every generation, however many each stage takes
    looks = [samples for _, samples in landscape.asked if samples[0].split == "validation"]
    assert [{ref.task for ref in samples} for samples in looks] == [{"residence"}] * 3 + [
        {"residence", "topic"}
    ] * 2 + [{"residence", "topic", "colour"}] * 2
    assert outcome.best_generation >= 10  # best of the last stage: validation of other tasks is another measure


def test_the_step_size_is_reset_or_kept():
    outcome, _ = run(job(stages=THREE))
    one, two, three = outcome.stages
    assert two["sigma_start"] == one["sigma_end"] != 0.05  # keep
    assert three["sigma_start"] == 0.05 != two["sigma_end"]  # reset


def test_one_stage_is_the_job_without_stages():
    """The same bits: samples, candidates, step sizes."""
    plain = job(generations=6)
    staged = job(stages=(StageSpec(plain.train, generations=6),))
    assert staged.plan == plain.plan
    assert timeless(run(staged)[1]) == timeless(run(plain)[1])


def test_statistics_are_of_the_first_stages_prompts():
    refs = statistics_samples(job(stages=THREE))
    assert {ref.task for ref in refs} == {"residence"} and {ref.split for ref in refs} == {"train"}
    assert not set(refs) & {ref for g in range(12) for ref in training_samples(job(stages=THREE), g)}


# Killed, and on again


@pytest.mark.parametrize("known", [1, 5, 6, 8, 11, 12])
@pytest.mark.parametrize("racing", [False, True])
def test_killed_in_any_stage_it_ends_in_the_same_place(known, racing):
    spec_ = job(stages=THREE, racing=spec.RacingSpec(racing, first=0.4))
    whole, records = run(spec_)
    landscape, ends = Noisy(), []
    outcome, told = run(spec_, landscape, past=records[:known], ends=ends)
    assert [r["generation"] for r in told] == list(range(known + 1, 13))
    trained = {ref for _, samples in landscape.asked for ref in samples if ref.split == "train"}
    plan = [spec_.plan[0]] * 5 + [spec_.plan[1]] * 4 + [spec_.plan[2]] * 3
    assert trained == {ref for g in range(known, 12) for ref in training_samples(spec_, g, plan[g])}
    assert [entry["name"] for entry, _, _ in ends] == ["one", "two", "stage3"]
    assert np.array_equal(outcome.best.theta, whole.best.theta) and np.array_equal(outcome.last.theta, whole.last.theta)
    assert timeless(outcome.generations) == timeless(whole.generations)
    assert outcome.stages == whole.stages


def test_the_last_stage_can_be_made_longer():
    _, records = run(job(stages=THREE))
    longer = (*THREE[:2], dataclasses.replace(THREE[2], generations=6))
    assert job(stages=longer).digest() == job(stages=THREE).digest()
    outcome, told = run(job(stages=longer), past=records)
    assert [r["generation"] for r in told] == [13, 14, 15]
    whole, _ = run(job(stages=longer))
    assert np.array_equal(outcome.last.theta, whole.last.theta) and np.array_equal(outcome.best.theta, whole.best.theta)
    assert outcome.stages == whole.stages


# What ends a stage, or the job


class Flat(Noisy):
    """Nothing is better than anything."""

    def one(self, policy, ref):
        return dataclasses.replace(super().one(PolicySpec("full"), ref), kept=0.5)


class Undecided(Noisy):
    """Training samples say what is better, validation samples say that nothing is."""

    def one(self, policy, ref):
        return super().one(PolicySpec("full") if ref.split == "validation" else policy, ref)


def test_no_better_validation_fitness_ends_a_stage_not_the_job():
    stages = (StageSpec(("residence",), generations=20), StageSpec(("topic",), generations=3))
    outcome, records = run(job(stages=stages, stop=StopSpec(patience=3)), Flat())
    # Looks at 2, 4, 6: the first one is the best, and 3 generations later the next look is that after 6.
    assert [s["generations"] for s in outcome.stages] == [6, 3]
    assert outcome.stages[0]["reason"] == "no better validation fitness in 4 generations"
    assert [(r["generation"], r["ended"]) for r in records if r["ended"]] == [(6, "stage"), (9, "job")]
    better, _ = run(job(generations=8, stop=StopSpec(patience=2)), Noisy(noise=0.0))
    assert better.stages[0]["generations"] == 8  # it does get better


def test_a_small_step_size_ends_a_stage_with_a_look():
    full, records = run(job(generations=20))
    limit = sorted(r["sigma"] for r in records)[-10]
    first = next(r["generation"] for r in records if r["sigma"] < limit)
    outcome, records = run(job(generations=20, stop=StopSpec(sigma_below=limit)))
    assert len(records) == first and "validation_fitness" in records[-1]
    assert records[-1]["ended"] == "job" and "step size" in records[-1]["reason"]


@pytest.mark.parametrize("budget", [150, 151, 400, 10**6])
def test_the_budget_of_evaluations_is_never_exceeded(budget):
    landscape = Noisy()
    outcome, records = run(job(stages=THREE, stop=StopSpec(evaluations=budget)), landscape)
    asked = sum(policies * len(samples) for policies, samples in landscape.asked)
    assert asked <= budget and "validation_fitness" in records[-1]
    if budget < 10**6:
        assert "evaluations" in outcome.stages[-1]["reason"] and len(records) < 12
        assert asked > budget - 100 - 9 * 5  # a generation and a look would not have fitted
    more, told = run(job(stages=THREE, stop=StopSpec(evaluations=10**6)), past=records)
    assert timeless(more.generations)[-1] == timeless(run(job(stages=THREE))[0].generations)[-1]
    assert len(told) == 12 - len(records)


def test_a_larger_stage_that_would_not_fit_the_budget_does_not_begin():
    stages = (StageSpec(("residence",), generations=20), StageSpec(("topic",), population=100, generations=3))
    stop = StopSpec(patience=2, evaluations=200)
    landscape = Flat()
    outcome, _ = run(job(stages=stages, stop=stop), landscape)
    assert len(outcome.stages) == 1 and outcome.stages[0]["ended"] == "job"
    assert sum(policies * len(samples) for policies, samples in landscape.asked) < 100


def test_hours_are_those_of_all_starts_and_what_was_told_stays_told():
    spec_ = job(generations=20, stop=StopSpec(hours=1.0))
    _, records = run(job(generations=4))
    for record in records:
        record["seconds"] = 1000.0  # 4000 in all: more than an hour, of which these four were told
    outcome, told = run(spec_, past=records)
    assert told == [] and len(outcome.generations) == 4 and "1 hours" in outcome.stages[-1]["reason"]
    outcome, told = run(spec_, past=records[:3])
    assert len(told) == 17  # 3000 s of an hour: what follows takes milliseconds
    raised = dataclasses.replace(spec_, stop=StopSpec(hours=2.0))
    assert raised.digest() == spec_.digest() == job(generations=20).digest()
    assert timeless(run(raised, past=records)[0].generations) == timeless(run(job(generations=20))[0].generations)


# Restarts


def test_a_stalled_search_starts_anew_with_a_larger_population():
    settings = {"generations": 20, "stop": StopSpec(patience=2), "restarts": RestartSpec(2, 1.5)}
    landscape = Flat()
    outcome, records = run(job(**settings), landscape)
    # Looks at the second and fourth generation of each search; the second one is no better.
    assert [r["generation"] for r in records if r["ended"]] == [4, 8, 12]
    assert [r["population"] for r in records] == [8] * 4 + [12] * 4 + [18] * 4
    (entry,) = outcome.stages
    reason = "no better validation fitness in 2 generations"
    assert entry["restarts"] == [
        {"generation": 4, "reason": reason, "population": 12},
        {"generation": 8, "reason": reason, "population": 18},
    ]
    assert [r["ended"] for r in records if r["ended"]] == ["search", "search", "job"]
    starts = [r["start"] for r in records if "start" in r]
    assert starts == [theta_digest(np.zeros(10))] * 3  # where the stage began
    thetas = {p.theta.tobytes() for p in landscape.policies if p.theta is not None}
    # All candidates differ, and so do means, but for the start, which is the first mean of three searches.
    assert len(thetas) >= 4 * (8 + 12 + 18)
    again, told = run(job(**settings), Flat(), past=records[:6])
    assert timeless(again.generations) == timeless(records) and len(told) == 6


def test_the_next_stage_starts_from_the_search_that_found_the_best():
    stages = (StageSpec(("residence",), generations=12), StageSpec(("topic",), generations=2))
    outcome, records = run(
        job(stages=stages, stop=StopSpec(patience=2), restarts=RestartSpec(1)),
        Undecided(),
    )
    first = [r for r in records if r["stage"] == "stage1"]
    assert [r["restart"] for r in first] == [0] * 4 + [1] * 4
    assert outcome.stages[0]["best_generation"] == 2  # all are equal: the first look is the best
    assert outcome.stages[1]["start"] == first[3]["theta"] != first[-1]["theta"]


# What is refused, and what follows from what


def settings(**changes) -> dict:
    plain = {"name": "s", "model": {"path": "m"}, "tasks": {"source": "recall"}}
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "train must name at least one task"),
        ({"stages": [{"train": []}]}, r"stages\[0\]: train must name"),
        ({"stages": [{"train": ["a"], "generation": 3}]}, "did you mean 'generations'"),
        ({"stages": [{"train": ["a"], "sigma": "rest"}]}, "did you mean 'reset'"),
        ({"stages": [{"train": ["a"], "population": 3}]}, "population must be at least 4"),
        ({"stages": [{"train": ["a", "a"]}]}, "twice"),
        ({"stages": [{"train": ["a"], "name": "x"}, {"train": ["b"], "name": "x"}]}, "folder name of its own"),
        ({"stages": [{"train": ["a"], "name": "x/y"}]}, "folder name"),
        ({"stages": [{"train": ["a"]}], "train": ["a", "b"]}, "train names other tasks than the stages"),
        ({"stages": [{"train": ["a"]}], "generations": 3}, "generations is 3, the stages' sum 30"),
        ({"stages": [{"train": ["a"]}, {"train": ["b"]}], "heldout": ["b"]}, "in train and in heldout"),
        ({"stages": [{"train": ["a"], "population": 9}], "search": {"mirrored": True}}, "even"),
        ({"train": ["a"], "restarts": {"count": 1}}, "restarts need stop.patience"),
        ({"train": ["a"], "stop": {"hours": 0}}, "hours must be above 0"),
        ({"train": ["a"], "fitness": {"normalise": True, "measure": "logprob"}}, "normalise"),
        ({"train": ["a"], "fitness": {"base_floor": 0}}, "base_floor"),
        ({"train": ["a"], "racing": {"first": 1.0}}, "first must lie between 0 and 1"),
        ({"train": ["a"], "racing": {"confidence": 1}}, "confidence"),
    ],
)
def test_bad_settings_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_mapping(JobSpec, settings(**changes), "job.yaml")
    assert "\n" not in str(caught.value)


def test_what_stages_leave_open_is_filled_in_and_read_back(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(settings(stages=[{"train": ["b", "a"]}, {"train": ["a", "c"], "name": "x"}])))
    read = spec.read(path, ["stages.1.generations=7", "search.population=16", "fitness.samples=64"])
    assert read.train == ("b", "a", "c") and read.generations == 37
    assert [(s.name, s.generations, s.samples, s.population) for s in read.plan] == [
        ("stage1", 30, 64, 16),
        ("x", 7, 64, 16),
    ]
    spec.write(read, tmp_path / "again.yaml")
    assert spec.read(tmp_path / "again.yaml") == read
    assert spec.read(path, ["stages.0.generations=7"]).digest() != spec.read(path).digest()
    for bad in ("stages.2.generations=7", "stages.first.generations=7"):
        with pytest.raises(ValueError, match="no item of a list of 2"):
            spec.read(path, [bad])
    with pytest.raises(ValueError, match="name a setting"):
        spec.read(path, ["stages.0={}"])


def test_a_small_split_is_drawn_from_a_large_one_walked_through():
    spec_ = job(generations=8)

    def size(task, split):
        return {"residence": 5, "topic": 100_000}[task]

    drawn = [training_samples(spec_, g, size=size) for g in range(8)]
    mine = [[ref.index for ref in refs if ref.task == "residence"] for refs in drawn]
    assert all(len(set(indices)) == 2 and max(indices) < 5 for indices in mine) and len(set(map(tuple, mine))) > 3
    assert set().union(*mine) == set(range(5))
    assert [r for refs in drawn for r in refs if r.task == "topic"] == [
        r for g in range(8) for r in training_samples(spec_, g) if r.task == "topic"
    ]
    assert drawn == [training_samples(spec_, g, size=size) for g in range(8)]
    few = [ref for ref in validation_samples(spec_, size=lambda task, split: 2) if ref.task == "topic"]
    assert [ref.index for ref in few] == [0, 1]


def test_mirrored_populations_stay_even():
    search = CMAESConfig(population=6, mirrored=True, sigma0=0.05)
    outcome, records = run(
        job(search=search, generations=9, stop=StopSpec(patience=1), restarts=RestartSpec(1, 1.5),
            validation=ValidationSpec(every=1, samples=3)),
        Flat(),
    )  # fmt: skip
    assert {r["population"] for r in records} == {6, 10}
