"""Starting from a rule, and searching a part: over an evaluator whose landscape is known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from namm_core.config import from_mapping
from orchestrator.evolution.stage import theta_digest
from orchestrator.evolution.start import given
from orchestrator.search.algorithms.cma_es import CMAESConfig
from orchestrator.spec import FitnessSpec, JobSpec, StageSpec, StartSpec, StopSpec
from tests.orchestrator import landscape
from tests.orchestrator.evolution.test_budgets import BUDGET, MEMORY, Sized, read
from tests.orchestrator.landscape import TARGET, Noisy, timeless

RULES = {"high_norm": -TARGET, "keydiff": 0.6 * TARGET, "l2": np.zeros(10)}
LINEAR = np.arange(10) < 4
TASKS = ("residence", "topic")
STAGES = (
    StageSpec(TASKS, "linear", generations=4, part="linear", variant="full", sigma0=0.02),
    StageSpec(TASKS, "whole", generations=4, samples=3),
)


def job(rule: str | None = "best", **changes) -> JobSpec:
    return landscape.job(memory=MEMORY, start=StartSpec(rule=rule), fitness=FitnessSpec(samples=2), **changes)


def run(spec: JobSpec, evaluate=None, past=(), **more):
    rule = spec.start.rule
    rules = {} if rule is None else RULES if rule == "best" else {rule: RULES[rule]}
    return landscape.run(spec, evaluate or Sized(), past, rules=rules, linear=LINEAR, **more)


def test_best_is_the_best_of_the_rules_on_validation():
    evaluate, begun = Sized(), []
    outcome, records = run(job(), evaluate, begun=begun)
    start = outcome.start
    assert start["rule"] == "keydiff" and list(start["rules"]) == list(RULES) and begun == [start]
    assert max(start["rules"].values(), key=lambda figures: figures["fitness"]) == start["rules"]["keydiff"]
    assert start["validation_fitness"] == start["rules"]["keydiff"]["fitness"]
    assert records[0]["start"] == theta_digest(RULES["keydiff"])
    json.dumps(start, allow_nan=False)
    first = next(policies for policies, samples in evaluate.asked if samples[0].split == "validation")
    assert first == len(RULES) + 1 and evaluate.asked[0][1][0].split == "validation"  # before any generation


def test_a_named_rule_is_where_the_search_starts_and_none_leaves_everything_as_it_was():
    outcome, records = run(job("high_norm"))
    assert outcome.start["rule"] == "high_norm" and records[0]["start"] == theta_digest(RULES["high_norm"])
    plain, records = run(job(None))
    assert plain.start is None and "before" not in records[0] and records[0]["start"] == theta_digest(np.zeros(10))


def test_given_numbers_are_where_the_search_starts():
    memory = dataclasses.replace(MEMORY, features=("key_similarity", "age"))  # ten numbers
    spec = landscape.job(
        memory=memory, start=StartSpec(theta=tuple((0.5 * TARGET).tolist())), fitness=FitnessSpec(samples=2)
    )
    outcome, records = landscape.run(spec, Sized(), rules=given(spec))
    assert outcome.start["rule"] == "given" and records[0]["start"] == theta_digest(0.5 * TARGET)
    assert given(job(None)) == {}
    for wrong, message in (
        ({"theta": (1.0, 2.0)}, "start.theta must be 10 finite numbers, not 2"),
        ({"theta": (float("nan"),) * 10}, "start.theta must be 10 finite numbers"),
        ({"theta": (0.0,) * 10, "rule": "keydiff"}, "start.theta says all numbers: leave out start.rule"),
    ):
        with pytest.raises(ValueError, match=message):
            landscape.job(memory=memory, start=StartSpec(**wrong), fitness=FitnessSpec(samples=2))


class Worse(Noisy):
    """The start is the best there is, on validation samples; elsewhere it is the worst."""

    def score(self, theta, ref, base):
        far = float(np.linalg.norm(theta - RULES["keydiff"]))
        return 2 * base * (np.exp(-far) if ref.split == "validation" else 1 - np.exp(-far))


@pytest.mark.parametrize("stages", [None, STAGES])
def test_what_is_chosen_is_never_below_the_start(stages):
    outcome, records = run(job(**({"stages": stages} if stages else {})), Worse())
    looks = [record["validation_fitness"] for record in records if "validation_fitness" in record]
    assert looks and max(looks) < outcome.start["validation_fitness"]
    assert outcome.best_generation == 0
    assert np.array_equal(outcome.best.theta, RULES["keydiff"].astype(np.float32))
    assert not np.array_equal(outcome.last.theta, outcome.best.theta)
    assert {stage["validation_fitness"] for stage in outcome.stages} == {outcome.start["validation_fitness"]}


def test_a_later_stage_must_beat_what_the_one_before_found():
    outcome, records = run(job(stages=STAGES))
    before = records[4]["before"]
    assert set(before["validation_looks"]) <= {"best", "start", "mean"} and "start" in before["validation_looks"]
    first, second = outcome.stages
    assert before["validation_fitness"] >= first["validation_fitness"] >= outcome.start["validation_fitness"]
    assert second["validation_fitness"] >= before["validation_fitness"]


def test_a_stage_of_the_linear_part_changes_nothing_else():
    evaluate, ends = Sized(), []
    outcome, records = run(job(stages=STAGES), evaluate, ends=ends)
    start = RULES["keydiff"].astype(np.float32)
    linear, whole = outcome.stages
    assert (linear["part"], linear["searched"], linear["sigma_start"]) == ("linear", 4, 0.02) and "part" not in whole
    assert whole["sigma_start"] == 0.05 and whole["start"] == records[3]["theta"]
    for _, best, mean in ends[:1]:
        assert np.array_equal(best.theta[~LINEAR], start[~LINEAR])
        assert np.array_equal(mean.theta[~LINEAR], start[~LINEAR])
        assert not np.array_equal(mean.theta[LINEAR], start[LINEAR])
    assert not np.array_equal(ends[1][2].theta[~LINEAR], start[~LINEAR])


def test_a_stage_has_a_variant_of_its_own():
    other = (dataclasses.replace(STAGES[0], variant="diagonal"), STAGES[1])
    one, two = (run(job(stages=stages))[1] for stages in (STAGES, other))
    assert one[0]["fitness"] == two[0]["fitness"] and one[3]["theta"] != two[3]["theta"]
    search = CMAESConfig(population=8, sigma0=0.05, variant="full")
    assert timeless(run(job(stages=STAGES[:1], search=search))[1]) == timeless(run(job(stages=STAGES[:1]))[1])


@pytest.mark.parametrize("known", [1, 3, 4, 5, 7, 8])
def test_killed_in_any_stage_it_ends_in_the_same_place(known):
    spec = job(stages=STAGES)
    whole, records = run(spec)
    evaluate = Sized()
    outcome, told = run(spec, evaluate, past=records[:known])
    assert [record["generation"] for record in told] == list(range(known + 1, 9))
    assert timeless(outcome.generations) == timeless(whole.generations) and outcome.stages == whole.stages
    assert outcome.start == whole.start and outcome.best_generation == whole.best_generation
    assert np.array_equal(outcome.best.theta, whole.best.theta) and np.array_equal(outcome.last.theta, whole.last.theta)
    if known == 8:
        assert not evaluate.asked  # what was looked at before a stage is told again, too


@pytest.mark.parametrize("budget", [150, 250, 400])
def test_looks_before_a_stage_count_in_the_budget_of_evaluations(budget):
    evaluate = Sized()
    run(job(stages=STAGES, stop=StopSpec(evaluations=budget)), evaluate)
    assert sum(policies * len(samples) for policies, samples in evaluate.asked) <= budget


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory": BUDGET, "start": {"rule": "keydif"}}, "start.*unknown rule 'keydif'; did you mean 'keydiff'"),
        ({"memory": BUDGET, "start": {"rule": "expected_attention"}}, "needs the feature expected_attention"),
        ({"memory": {**BUDGET, "features": ["bands"]}, "start": {"rule": "best"}}, "no rule is a point"),
        ({"stages": [{"train": ["a"], "part": "linar"}], "train": ["a"]}, "did you mean 'linear'"),
        ({"stages": [{"train": ["a"], "variant": "ful"}], "train": ["a"]}, "did you mean 'full'"),
        ({"stages": [{"train": ["a"], "sigma0": 0}], "train": ["a"]}, "sigma0 must be above 0"),
        ({"stages": [{"train": ["a"], "sigma0": 0.1, "sigma": "keep"}], "train": ["a"]}, "leave sigma0 out"),
        (
            {"stages": [{"train": ["a"], "variant": "full"}], "search": {"algorithm": "openai_es"}},
            "openai_es has no variant",
        ),
    ],
)
def test_bad_settings_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)


def test_what_stages_say_is_read_back(tmp_path):
    from orchestrator import spec

    plain = {"name": "s", "model": {"path": "m"}, "tasks": {"source": "recall"}, "memory": BUDGET}
    plain |= {"stages": [{"train": ["a"], "part": "linear", "variant": "full", "sigma0": 0.3}, {"train": ["a"]}]}
    plain |= {"start": {"rule": "best"}, "fitness": {"mix": {"probability": 0.7, "score": 0.3}}}
    one = from_mapping(JobSpec, plain, "job.yaml")
    spec.write(one, tmp_path / "again.yaml")
    assert spec.read(tmp_path / "again.yaml") == one
    assert [(s.part, s.variant, s.sigma0) for s in one.plan] == [("linear", "full", 0.3), ("all", None, 0.065)]
