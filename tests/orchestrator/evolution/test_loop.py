"""The generation loop and the comparison, over an evaluator whose landscape is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from orchestrator.evaluation import held_out as evaluation
from orchestrator.evaluation.sizes import Sizing
from orchestrator.evolution.fitness import fitness_of
from orchestrator.evolution.loop import Evolved, evolve
from orchestrator.evolution.samples import training_samples, validation_samples
from orchestrator.policy_entries import PolicyEntry
from orchestrator.spec import FitnessSpec, JobSpec, ValidationSpec
from tests.orchestrator import landscape
from tests.orchestrator.landscape import STATISTICS, TARGET, Kept, Landscape, problem
from workers.unit import PolicySpec, SampleRef, SampleResult

LONG = {"heldout": ("colour",), "generations": 30, "validation": ValidationSpec(every=5, samples=3)}


def job(**changes) -> JobSpec:
    return landscape.job(**{**LONG, **changes})


def run(evaluate: Landscape, past=(), **changes) -> tuple[Evolved, list[dict]]:
    return landscape.run(job(**changes), evaluate, past)


def test_it_finds_what_is_better():
    outcome, records = run(Landscape())
    assert len(records) == 30 and records == outcome.generations
    assert records[-1]["validation_score"] > records[4]["validation_score"] > 0.7
    assert np.linalg.norm(outcome.best.theta - TARGET) < 0.6 * np.linalg.norm(TARGET)


def test_all_candidates_of_a_generation_see_the_same_fresh_samples():
    evaluate = Landscape()
    run(evaluate, generations=4)
    asked = [samples for policies, samples in evaluate.asked if policies == 10]  # 8, their mean, and full
    assert len(asked) == 4 and all(len(samples) == 4 for samples in asked)
    everything = [ref for samples in asked for ref in samples]
    assert len(set(everything)) == len(everything)
    assert {ref.split for ref in everything} == {"train"} and {ref.task for ref in everything} == {"residence", "topic"}
    other = {ref for generation in range(4) for ref in training_samples(job(seed=1), generation)}
    assert not other & set(everything)


def test_a_generations_samples_are_settled_when_it_is_told():
    kept = Kept()
    evolve(job(generations=3), problem(Landscape()), kept)
    assert kept.settled == [training_samples(job(generations=3), generation) for generation in range(3)]


def test_held_out_kinds_and_samples_choose_nothing():
    evaluate = Landscape()
    run(evaluate)
    seen = {ref for _, samples in evaluate.asked for ref in samples}
    assert {ref.split for ref in seen} == {"train", "validation"}
    assert "colour" not in {ref.task for ref in seen}


def test_the_best_on_validation_is_what_is_deployed():
    outcome, records = run(Landscape())
    looked_at = {r["generation"]: r["validation_fitness"] for r in records if "validation_fitness" in r}
    assert list(looked_at) == [5, 10, 15, 20, 25, 30]
    assert outcome.best_generation == max(looked_at, key=looked_at.get)


def test_same_seed_same_bits_another_seed_others():
    first, again, other = (run(Landscape(), seed=seed)[0].best.theta for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize("known", [1, 5, 7, 30])
def test_told_again_it_asks_only_for_what_comes_after_and_ends_in_the_same_place(known):
    whole, records = run(Landscape())
    evaluate = Landscape()
    outcome, told = run(evaluate, past=records[:known])
    assert [r["generation"] for r in told] == list(range(known + 1, 31))
    asked = [samples for policies, samples in evaluate.asked if policies == 10]
    assert asked == [training_samples(job(), generation) for generation in range(known, 30)]
    assert np.array_equal(outcome.best.theta, whole.best.theta) and np.array_equal(outcome.last.theta, whole.last.theta)
    assert outcome.best_generation == whole.best_generation
    times = ("seconds",)
    assert [{k: v for k, v in r.items() if k not in times} for r in outcome.generations] == [
        {k: v for k, v in r.items() if k not in times} for r in whole.generations
    ]


def test_a_search_that_arrives_elsewhere_than_it_did_says_so():
    _, records = run(Landscape(), generations=3)
    records[1]["fitness"] = records[1]["fitness"][::-1]
    with pytest.raises(ValueError, match="generation 2 told again gives another theta"):
        run(Landscape(), past=records, generations=4)


def test_a_finished_run_that_is_made_longer_looks_where_the_longer_one_would():
    _, records = run(Landscape(), generations=7)
    longer, _ = run(Landscape(), past=records, generations=12)
    assert longer.best_generation in (5, 10, 12)  # not 7, where only the shorter run looked
    assert np.array_equal(longer.best.theta, run(Landscape(), generations=12)[0].best.theta)


class Sick(Landscape):
    """Like its parent, but some answers are not finite."""

    def __init__(self, sick: Callable[[PolicySpec, SampleRef], bool]) -> None:
        super().__init__()
        self.sick = sick

    def one(self, policy, ref):
        result = super().one(policy, ref)
        return dataclasses.replace(result, logprob=math.nan) if self.sick(policy, ref) else result


def test_a_candidate_whose_answer_is_not_finite_is_missing_the_others_go_on():
    outcome, records = run(Sick(lambda policy, ref: policy.theta is not None and policy.theta[0] > 0.02), generations=3)
    missing = [sum(f is None for f in r["fitness"]) for r in records]
    assert any(missing) and all(m < 8 for m in missing)
    assert all(r["not_finite"] >= m for r, m in zip(records, missing, strict=True))
    assert all(math.isfinite(r["fitness_mean"]) for r in records) and np.isfinite(outcome.last.theta).all()


def test_a_sample_that_the_full_cache_cannot_answer_is_left_out():
    bad = training_samples(job(), 0)[0]
    _, records = run(Sick(lambda policy, ref: ref == bad), generations=2)
    assert [r["quarantined"] for r in records] == [1, 0] and [r["not_finite"] for r in records] == [0, 0]


def test_where_nothing_is_finite_the_job_says_what_to_do():
    with pytest.raises(ValueError, match="no candidate has a finite fitness.*float32"):
        run(Sick(lambda policy, ref: True), generations=2)


def test_a_quarantined_sample_is_missing_for_all_never_a_zero():
    broken = training_samples(job(), 0)[1]
    _, records = run(Landscape(broken), generations=2)
    _, whole = run(Landscape(), generations=2)
    assert [r["quarantined"] for r in records] == [1, 0]
    # All samples of this landscape are alike, so that leaving one out changes nothing.
    assert records[0]["fitness_mean"] == pytest.approx(whole[0]["fitness_mean"])


def test_fitness_is_what_the_settings_say():
    def result(task: str, score: float, logprob: float, kept: float) -> SampleResult:
        return SampleResult(task, "train", 0, score, logprob, kept, [kept], 10, "")

    rows = [result("residence", 1.0, 0.0, 0.5), result("residence", 0.0, -2.0, 0.7), result("topic", 1.0, -1.0, 0.9)]
    tasks = {"score": (0.5 + 1) / 2, "logprob": (-1 - 1) / 2}
    tasks["probability"] = ((1 + math.exp(-2)) / 2 + math.exp(-1)) / 2
    for measure, expected in tasks.items():
        assert fitness_of(rows, job(fitness=FitnessSpec(measure=measure))) == pytest.approx(expected)
    mixed = 0.7 * tasks["probability"] + 0.3 * tasks["score"]
    for mix in ({"probability": 0.7, "score": 0.3}, {"probability": 7, "score": 3}):
        assert fitness_of(rows, job(fitness=FitnessSpec(mix=mix))) == pytest.approx(mixed)
    priced = FitnessSpec(kept_weight=0.5, kept_free=0.25)
    assert fitness_of(rows, job(fitness=priced)) == pytest.approx(0.75 - 0.5 * (0.75 - 0.25))
    assert fitness_of(rows, job(fitness=FitnessSpec(kept_weight=0.5, kept_free=0.8))) == pytest.approx(0.75)
    assert math.isnan(fitness_of(rows[:2], job()))


@pytest.mark.parametrize("last, limit", [(0.3, 0.5), (0.3, 0.9), (-0.1, 0.5)])
def test_a_size_limit_shifts_only_what_is_too_large(last, limit):
    namm = PolicySpec("namm", np.append(TARGET[:-1], last).astype(np.float32), STATISTICS)
    found = Sizing(Landscape(), namm, validation_samples(job())).at_most(limit)
    assert found.kept <= limit
    assert np.array_equal(found.memory.theta[:-1], namm.theta[:-1])
    if last < 0:
        assert found.shift == 0 and np.array_equal(found.memory.theta, namm.theta)
    else:
        assert found.shift > 0 and found.kept > limit - 0.05


def test_the_comparison_is_paired_and_at_equal_size():
    namm = PolicySpec("namm", TARGET.astype(np.float32), STATISTICS)
    samples = evaluation.held_out_samples(("residence", "topic", "colour"), 10)
    assert [sum(ref.task == kind for ref in samples) for kind in ("residence", "topic", "colour")] == [4, 3, 3]
    evaluate = Landscape(broken=samples[2])
    records = evaluation.compare(evaluate, namm, [PolicyEntry(name) for name in ("full", "namm", "h2o")], samples)
    kept = np.mean([r["kept"] for r in records if r["policy"] == "namm"])
    assert {r["budget"] for r in records if r["policy"] == "h2o"} == {round(float(kept), 4)}
    for policy in ("full", "namm", "h2o"):
        mine = [(r["task"], r["sample"]) for r in records if r["policy"] == policy]
        assert len(mine) == 9 and (samples[2].task, samples[2].index) not in mine
