"""Evolution over sizes: which sample has which budget, and that nothing else changes."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from namm_core.config import NammConfig, from_mapping
from orchestrator.evolution.budgets import AtBudgets, one_after_another, training_budgets, validation_budgets
from orchestrator.evolution.samples import training_samples, validation_samples
from orchestrator.spec import FitnessSpec, JobSpec, RacingSpec, RestartSpec, StageSpec, StopSpec
from tests.orchestrator import landscape
from tests.orchestrator.landscape import STATISTICS, TARGET, Noisy, timeless
from workers.unit import PolicySpec

SIZES = (0.1, 0.2, 0.3, 0.5)
MEMORY = NammConfig(selection="budget", scorer="linear", features=("key_similarity", "key_norm", "age"))


def job(samples: int = 2, budgets: tuple[float, ...] | None = None, **changes) -> JobSpec:
    return landscape.job(memory=MEMORY, fitness=FitnessSpec(samples=samples, budgets=budgets), **changes)


class Sized(Noisy):
    """A small budget makes an answer worse; remembers who was asked what at which size."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[PolicySpec, float | None, tuple]] = []

    def one(self, policy, ref):
        self.sizes.append((policy, policy.budget, ref))
        result = super().one(policy, ref)
        return dataclasses.replace(result, score=result.score * (policy.budget or 1.0) ** 0.2)


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 6, 8])
def test_every_budget_comes_equally_often_to_every_task(samples):
    spec = job(samples, generations=len(SIZES))
    found = Counter()
    for generation in range(len(SIZES)):
        refs = training_samples(spec, generation)
        budgets = training_budgets(spec, generation, spec.plan[0], refs)
        assert list(budgets) == refs
        found.update((ref.task, budget) for ref, budget in budgets.items())
    assert found == {(task, budget): samples for task in spec.train for budget in SIZES}


def test_the_first_samples_which_a_race_looks_at_are_not_always_of_one_size():
    spec = job(4, generations=4)
    firsts = []
    for generation in range(4):
        refs = training_samples(spec, generation)
        firsts.append(training_budgets(spec, generation, spec.plan[0], refs)[refs[0]])
    assert sorted(firsts) == list(SIZES)


def test_a_validation_sample_has_the_same_budget_in_every_stage():
    stages = (StageSpec(("topic",), generations=2), StageSpec(("residence", "topic"), generations=2))
    spec = job(stages=stages)
    one, two = (validation_budgets(spec, validation_samples(spec, stage.train)) for stage in spec.plan)
    assert one.items() <= two.items() and len(two) == 6 and set(two.values()) == set(SIZES)


def test_results_come_back_in_order_all_groups_asked_for_at_once():
    calls, evaluate = [], Sized()

    def together(groups, progress):
        calls.append(groups)
        return one_after_another(evaluate)(groups, progress)

    spec, done = job(5), []
    samples = training_samples(spec, 0)
    budgets = training_budgets(spec, 0, spec.plan[0], samples)
    namm = PolicySpec("namm", TARGET.astype(np.float32), STATISTICS)
    policies = [namm, PolicySpec("full"), PolicySpec("l2", budget=0.4)]
    found = AtBudgets(together, budgets)(policies, samples, done.append)
    assert len(calls) == 1 and len(calls[0]) == len(SIZES) and sum(done) == 3 * len(samples)
    for policy, row in zip(policies, found, strict=True):
        for ref, result in zip(samples, row, strict=True):
            given = dataclasses.replace(policy, budget=budgets[ref]) if policy is namm else policy
            assert result == evaluate.one(given, ref)


def test_all_candidates_and_the_mean_are_asked_at_the_same_sizes_and_the_full_cache_at_none():
    evaluate = Sized()
    outcome, _ = landscape.run(job(), evaluate)
    by_sample = {}
    for policy, budget, ref in evaluate.sizes:
        by_sample.setdefault(ref, Counter())[(policy.name, budget)] += 1
    for found in by_sample.values():
        assert sorted(name for name, _ in found) == ["full", "namm"] and found["full", None] > 0
    assert {budget for _, budget, _ in evaluate.sizes} == {*SIZES, None}
    assert outcome.best.budget is None and outcome.last.budget is None


def test_a_look_says_how_good_it_is_at_each_size():
    _, records = landscape.run(job(), Sized())
    looks = [look for record in records for look in record.get("validation_looks", {}).values()]
    assert looks and all(list(look["budgets"]) == ["0.1", "0.2", "0.3", "0.5"] for look in looks)
    _, records = landscape.run(landscape.job(), Sized())
    assert not any("budgets" in look for r in records for look in r.get("validation_looks", {}).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"racing": RacingSpec(True, first=0.4), "samples": 4},
        {"stop": StopSpec(patience=2), "restarts": RestartSpec(2, 1.5), "generations": 14},
    ],
)
def test_racing_and_restarts_go_on_in_the_same_place(changes):
    spec = job(**changes)
    whole, records = landscape.run(spec, Sized())
    if "racing" in changes:
        assert sum(record["saved"] for record in records) > 0
    else:
        assert any(record["restart"] for record in records)
    for known in (1, 3, len(records) - 1):
        outcome, told = landscape.run(spec, Sized(), past=records[:known])
        assert len(told) == len(records) - known
        assert timeless(outcome.generations) == timeless(whole.generations) and outcome.stages == whole.stages
        assert np.array_equal(outcome.best.theta, whole.best.theta)


BUDGET = {"selection": "budget", "scorer": "linear", "features": ["key_similarity", "key_norm", "age"]}


def read(**changes) -> JobSpec:
    plain = {"name": "s", "model": {"path": "m"}, "tasks": {"source": "recall"}, "train": ["a"], **changes}
    return from_mapping(JobSpec, plain, "job.yaml")


def test_what_is_not_said_of_sizes_is_filled_in():
    spec = read(memory=BUDGET)
    assert spec.fitness.budgets == SIZES and spec.evaluation.budget == 0.3
    assert read().fitness.budgets is None and read().evaluation.budget is None
    given = read(memory=BUDGET, fitness={"budgets": [0.2]}, evaluation={"budget": 0.1})
    assert given.fitness.budgets == (0.2,) and given.evaluation.budget == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": BUDGET, "fitness": {"budgets": [0.1, 1.0]}}, "budgets must lie between 0 and 1, not 1.0"),
        ({"memory": BUDGET, "fitness": {"budgets": [0]}}, "budgets must lie between 0 and 1, not 0"),
        ({"memory": BUDGET, "fitness": {"budgets": []}}, "at least one kept fraction"),
        ({"fitness": {"budgets": [0.1]}}, "fitness.budgets needs memory.selection budget"),
        ({"evaluation": {"budget": 0.1}}, "evaluation.budget needs memory.selection budget"),
        ({"memory": BUDGET, "evaluation": {"budget": 1.5}}, "budget must lie between 0 and 1"),
        ({"memory": BUDGET, "start": {"bias": 0.1}}, "start.bias is for memories with a threshold"),
        ({"memory": BUDGET, "evaluation": {"kept_at_most": 0.5}}, "kept_at_most is for memories with a threshold"),
        ({"fitness": {"mix": {}}}, "mix must name measures"),
        ({"fitness": {"mix": {"probabilty": 1}}}, "mix must name measures"),
        ({"fitness": {"mix": {"score": 0}}}, "weights above 0"),
        ({"fitness": {"mix": {"score": 1, "logprob": 1}}}, "logprob beside others"),
        ({"fitness": {"mix": {"logprob": 1}, "normalise": True}}, "normalise"),
    ],
)
def test_bad_settings_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)
