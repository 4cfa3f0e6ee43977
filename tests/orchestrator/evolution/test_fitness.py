"""Fitness against the full cache: normalised, per sample, with its interval at every look."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from orchestrator.evolution.fitness import contributions, fitness_of
from orchestrator.evolution.loop import evolve
from orchestrator.evolution.samples import training_samples
from orchestrator.paired import paired_interval
from orchestrator.protocols import Recorder
from orchestrator.spec import FitnessSpec, JobSpec, StageSpec
from orchestrator.storage.journal import BASE, Journal, policy_key
from tests.orchestrator.landscape import Noisy, job, problem, run
from workers.unit import PolicySpec, SampleRef, SampleResult


def result(task: str, score: float, kept: float = 1.0) -> SampleResult:
    return SampleResult(task, "train", 0, score, math.log(score or 1e-9), kept, [kept], 10, "")


def normalised(**changes) -> JobSpec:
    return job(fitness=FitnessSpec(normalise=True, **changes))


ROWS = [result("residence", 0.5), result("residence", 0.7), result("topic", 0.2)]
BASES = [result("residence", 0.8), result("residence", 0.4), result("topic", 0.1)]


def test_a_task_counts_as_its_mean_over_the_full_caches():
    assert fitness_of(ROWS, normalised(), base=BASES) == pytest.approx((0.6 / 0.6 + 0.2 / 0.1) / 2)
    assert fitness_of(ROWS, job(), base=BASES) == pytest.approx((0.6 + 0.2) / 2)
    assert fitness_of(BASES, normalised(), base=BASES) == pytest.approx(1.0)


def test_the_guard_for_tiny_bases_is_what_the_settings_say():
    rows, bases = [*ROWS[:2], result("topic", 0.001)], [*BASES[:2], result("topic", 0.0)]
    assert fitness_of(rows, normalised(), base=bases) == pytest.approx((1 + 0.001 / 1e-7) / 2)
    assert fitness_of(rows, normalised(base_floor=0.1), base=bases) == pytest.approx((0.6 / 0.7 + 0.001 / 0.1) / 2)


@pytest.mark.parametrize("mix", [None, {"probability": 0.7, "score": 0.3}])
@pytest.mark.parametrize("measure", ["score", "probability"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("free", [0.1, 0.5, 0.9])
def test_what_samples_add_has_the_fitness_as_its_mean(measure, mix, normalise, free):
    rng = np.random.default_rng(0)
    rows, bases = ([result(t, rng.random(), rng.random()) for t in ("residence", "topic", "topic")] for _ in range(2))
    spec = job(fitness=FitnessSpec(measure=measure, mix=mix, normalise=normalise, kept_weight=0.7, kept_free=free))
    added = contributions(rows, spec, spec.train, bases)
    assert added.shape == (3,) and added.mean() == pytest.approx(fitness_of(rows, spec, base=bases))


def test_raw_and_normalised_scores_stand_side_by_side():
    """The scale of a task's scores decides nothing where they are normalised."""
    spec = dataclasses.replace(normalised(samples=3), generations=3)
    small, large = ({"residence": 0.4, "topic": scale} for scale in (0.01, 0.5))
    (_, few), (_, many) = (run(spec, Noisy(noise=0.1, base=base)) for base in (small, large))
    for record in few:
        assert record["base"] == pytest.approx(small)
        for task in spec.train:
            assert record["normalised"][task] == pytest.approx(record["tasks"][task] / (small[task] + 1e-7))
        assert record["full_fitness"] == pytest.approx(1.0, abs=1e-4)
        assert record["mean_fitness"] == pytest.approx(np.mean(list(record["normalised"].values())))
    assert [r["fitness"] for r in few] == [pytest.approx(r["fitness"], abs=1e-4) for r in many]


def test_every_look_says_how_sure_it_is():
    landscape = Noisy(noise=0.3)
    spec = job(generations=4)
    outcome, records = run(spec, landscape)
    samples = [refs for _, refs in landscape.asked if refs[0].split == "validation"]
    assert len(samples) == 2 and samples[0] == samples[1]  # the same ones at every look
    for record in (records[1], records[3]):
        looks = record["validation_looks"]
        chosen = looks[record["validation_of"]]
        assert set(looks) == {"mean", "averaged"} and chosen["fitness"] == record["validation_fitness"]
        assert record["validation_difference"] == chosen["difference"]
        low, high = record["validation_interval"]
        assert low < record["validation_difference"] < high
    scores = np.array([landscape.one(outcome.last, ref).score for ref in samples[0]])
    difference, low, high = paired_interval(scores - 0.5)
    last = records[-1]["validation_looks"]["mean"]
    assert (last["difference"], *last["interval"]) == pytest.approx((difference, low, high))


def test_a_base_score_is_asked_once_and_found_again_after_a_generation_is_told(tmp_path):
    """Where a small split comes round, the full cache's results are there; the candidates' leave."""
    ref, full = SampleRef("residence", "train", 0), PolicySpec("full")
    base = dataclasses.replace(result("residence", 0.5), index=0)
    journal = Journal(tmp_path, "job")
    journal.put([(BASE, base), ("candidate", base)])
    journal.tell({"generation": 1}, [ref])
    for opened in (journal, Journal(tmp_path, "job")):
        assert opened.get(BASE, ref) == base and opened.get("candidate", ref) is None
    assert policy_key(full) == BASE


class Journalled(Recorder):
    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def told(self, record, settled):
        self.journal.tell(record, list(settled))


def test_samples_that_come_round_ask_for_no_base_that_is_known(tmp_path):
    """Over a real journal: stages and generations share it."""
    landscape, made = Noisy(), []
    journal = Journal(tmp_path, "job")

    def evaluate(policies, samples, progress=lambda done: None):
        for policy in policies:
            if policy.name == "full":
                fresh = [ref for ref in samples if journal.get(BASE, ref) is None]
                made.extend(fresh)
                journal.put([(BASE, landscape.one(policy, ref)) for ref in fresh])
        return landscape(policies, samples, progress)

    stages = (StageSpec(("residence",), generations=4), StageSpec(("residence", "topic"), generations=4))
    spec = job(stages=stages)
    outcome = evolve(spec, problem(evaluate, size=lambda task, split: 5), Journalled(journal))
    asked = [ref for g in outcome.generations for ref in _refs(spec, g)]
    assert len(made) == len(set(made)) < len(asked) and {ref.split for ref in made} == {"train", "validation"}
    assert {ref for ref in made if ref.split == "train"} == set(asked)


def _refs(spec: JobSpec, record: dict) -> list[SampleRef]:
    stage = spec.plan[record["stage_number"] - 1]
    return training_samples(spec, record["generation"] - 1, stage, lambda task, split: 5)
