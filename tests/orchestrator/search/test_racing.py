"""Racing: who is dropped, that the elite's ranks stay, and what it saves."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from orchestrator.evolution.samples import training_samples
from orchestrator.search.algorithms.cma_es import CMAESConfig
from orchestrator.search.racing import RacingSpec, dropped, parts, ranked_below
from orchestrator.spec import FitnessSpec, ValidationSpec
from tests.orchestrator.landscape import Noisy, job, run, timeless
from workers.unit import PolicySpec, SampleRef


def test_shares_of_samples():
    assert parts(RacingSpec(False), 64) == [range(0, 64)]
    assert parts(RacingSpec(True), 64) == [range(0, 16), range(16, 32), range(32, 48), range(48, 64)]
    assert parts(RacingSpec(True, first=0.5, step=1.0), 5) == [range(0, 3), range(3, 5)]
    assert parts(RacingSpec(True, first=0.1, step=0.1), 3) == [range(0, 1), range(1, 2), range(2, 3)]
    assert parts(RacingSpec(True), 1) == [range(0, 1)]


def values(*means: float, seen: int = 10, spread: float = 0.1) -> np.ndarray:
    """Candidates with exactly these means, and differences that shake by `spread` about them."""
    noise = np.random.default_rng(0).normal(0, spread, (len(means), seen))
    return np.array(means)[:, None] + noise - noise.mean(axis=1, keepdims=True) + np.linspace(-3, 3, seen)


def test_who_is_clearly_beaten_by_as_many_as_the_elite_is_dropped_worst_first():
    rows = values(1.0, 0.0, 0.9, -1.0, 0.95, 0.93)
    assert dropped(rows, of=40, elite=3, fewest=3, confidence=0.975) == [3, 1]
    assert dropped(rows, of=40, elite=3, fewest=5, confidence=0.975) == [3]  # so many stay in any case
    assert dropped(rows, of=40, elite=5, fewest=5, confidence=0.975) == [
        3
    ]  # four of them beat the second worst, not five
    assert dropped(rows, of=10, elite=3, fewest=3, confidence=0.975) == []  # all is seen
    assert dropped(values(1.0, 0.99, 0.98, 0.97), of=40, elite=1, fewest=1, confidence=0.975) == []  # nothing is clear


def test_differences_are_paired():
    """What is hard for all does not hide who is better: here it varies by 3, and candidates differ by 1."""
    rows = values(1.0, 0.0, seen=6)
    assert dropped(rows, of=40, elite=1, fewest=1, confidence=0.975) == [1]
    shuffled = np.array([rows[0], np.roll(rows[1], 3)])
    assert dropped(shuffled, of=40, elite=1, fewest=1, confidence=0.975) == []


def test_chance_agreement_on_few_coarse_samples_drops_nobody():
    """Two candidates that differ on every of two samples, none of them by chance otherwise: std 0, yet nothing sure."""
    rows = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert dropped(rows, of=20, elite=1, fewest=1, confidence=0.975) == []


def test_a_row_that_is_not_finite_neither_drops_nor_is_dropped():
    rows = values(1.0, 0.0, 0.9, 0.95)
    rows[0, 3] = np.nan
    assert dropped(rows, of=40, elite=2, fewest=2, confidence=0.975) == [1]
    assert dropped(rows, of=40, elite=3, fewest=1, confidence=0.975) == []


def test_estimates_stand_below_survivors_in_their_own_order():
    lowered = ranked_below(np.array([0.9, 0.2, 0.5]), np.array([0.8, np.nan, 0.6]))
    assert lowered.max() < 0.6 and list(np.argsort(lowered)) == [1, 2, 0]
    assert list(ranked_below(np.array([0.5, 0.2]), np.array([0.8, 0.6]))) == [0.5, 0.2]


RACING = RacingSpec(True)
SIMULATED = {
    "search": CMAESConfig(population=32, sigma0=0.1),
    "fitness": FitnessSpec(samples=32),
    "validation": ValidationSpec(every=50, samples=2),
}


@pytest.mark.parametrize("coarse", [False, True])
def test_the_elites_ranks_are_those_without_racing_and_evaluations_are_saved(coarse):
    """40 noisy generations on two tasks; each generation's candidates are evaluated on all samples for comparison."""
    landscape, same = Noisy(noise=0.3, coarse=coarse), []
    spec = job(generations=40, racing=RACING, **SIMULATED)
    refs = [training_samples(spec, generation) for generation in range(40)]
    candidates: dict[SampleRef, list[PolicySpec]] = {}

    def evaluate(policies: list[PolicySpec], samples: list[SampleRef], progress=lambda done: None):
        candidates.setdefault(samples[0], policies[:32])
        return landscape(policies, samples, progress)

    _, records = run(spec, evaluate)
    for record, samples in zip(records, refs, strict=True):
        whole = [np.mean([landscape.one(p, ref).score for ref in samples]) for p in candidates[samples[0]]]
        elite, raced = (np.argsort(-np.array(f), kind="stable")[:16] for f in (whole, record["fitness"]))
        same.append(np.array_equal(elite, raced))
    assert np.mean(same) >= 0.95
    saved = np.mean([r["saved_share"] for r in records])
    assert saved > (0.03 if coarse else 0.1)
    asked = sum(n * len(samples) for n, samples in landscape.asked if samples[0].split == "train")
    assert asked == sum(r["asked"] for r in records) == 40 * 34 * 64 - sum(r["saved"] for r in records)


def test_without_clear_losers_racing_changes_no_number():
    plain, raced = (run(job(racing=RacingSpec(on, confidence=1 - 1e-12)))[1] for on in (False, True))
    assert sum(r["saved"] for r in raced) == 0
    for name in ("fitness", "theta", "sigma", "kept", "tasks"):
        assert [r[name] for r in raced] == [r[name] for r in plain]


def test_a_dropped_candidate_keeps_an_estimate_below_all_survivors():
    _, records = run(job(generations=3, racing=RACING, **SIMULATED), Noisy(noise=0.2))
    for record in records:
        assert record["dropped"] > 0 and all(f is not None for f in record["fitness"])
    assert timeless(records) == timeless(
        run(job(generations=3, racing=RACING, **SIMULATED), Noisy(noise=0.2), past=records[:2])[0].generations
    )


class Sick(Noisy):
    """A third of the candidates have answers that are not finite."""

    def one(self, policy, ref):
        result = super().one(policy, ref)
        sick = policy.theta is not None and policy.theta[0] > 0.02
        return dataclasses.replace(result, logprob=math.nan) if sick else result


def test_a_candidate_whose_answer_is_not_finite_leaves_the_race_and_is_missing():
    landscape = Sick()
    spec = job(generations=1, racing=RacingSpec(True, first=0.5, confidence=1 - 1e-12), fitness=FitnessSpec(samples=4))
    _, (record,) = run(spec, landscape)
    missing = sum(f is None for f in record["fitness"])
    assert 0 < missing == record["dropped"] < 8
    first, *later = (policies for policies, samples in landscape.asked if samples[0].split == "train")
    assert first == 10 and later == [10 - missing] * 2


@pytest.mark.parametrize("index", [1000, 1007])
def test_a_sample_that_fails_is_left_out_of_the_race(index):
    settings = {"generations": 1, "fitness": FitnessSpec(samples=8)}
    broken = SampleRef("residence", "train", index)  # of the first share, and of the last one
    _, (record,) = run(job(racing=RacingSpec(True, confidence=1 - 1e-12), **settings), Noisy(broken=broken))
    _, (plain,) = run(job(**settings), Noisy(broken=broken))
    assert record["quarantined"] == 1
    assert record["fitness"] == plain["fitness"] and record["theta"] == plain["theta"]
