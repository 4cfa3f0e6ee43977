"""The evaluator on the shipped model: scores that a person can check, whatever the shape of the unit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from namm_core import NammConfig
from orchestrator.services.redis_server import private_redis
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef, Unit

TASKS = {"source": "recall", "tokens": 200, "facts": 6, "topic_words": 10, "kinds": ["residence", "passkey"]}
REFS = tuple(SampleRef(kind, "train", i) for kind in TASKS["kinds"] for i in range(4))


@pytest.fixture(scope="module")
def evaluator(small_model) -> Evaluator:
    model = ModelConfig(str(small_model), ntk_alpha=4)
    return Evaluator(EvaluatorConfig(model, TASKS, NammConfig(update_interval=64)))


def theta(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(4172) * 0.065).astype(np.float32)


@pytest.fixture(scope="module")
def statistics(evaluator):
    return evaluator.statistics(list(REFS[:2]))


def test_the_model_answers_with_its_full_cache(evaluator):
    results = [evaluator.evaluate(Unit((PolicySpec("full"),), (ref,)))[0][0] for ref in REFS]
    assert np.mean([r.score for r in results]) >= 0.7
    assert all(r.kept == 1.0 and r.tokens == 200 for r in results)
    for ref, r in zip(REFS, results, strict=True):
        answer = evaluator.target.tasks.sample(*ref).answers[0]
        assert r.score == float(r.prediction == answer)


def test_layers_are_left_whole_as_far_as_the_size_pays_for_them(evaluator):
    """Of three: none at 0.3, one at 0.5, two at 0.75, whatever more is asked for; the size is met all the same."""
    for size, whole in ((0.3, 0), (0.5, 1), (0.75, 2)):
        policy = PolicySpec("l2", budget=size, options={"whole_layers": 2})
        ((result,),) = evaluator.evaluate(Unit((policy,), REFS[:1]))
        assert sum(kept == 1.0 for kept in result.kept_layers) == whole and abs(result.kept - size) < 0.01


def test_a_score_is_the_same_bits_every_time(evaluator, statistics):
    unit = Unit((PolicySpec("namm", theta(0), statistics),), REFS[:1])
    assert evaluator.evaluate(unit) == evaluator.evaluate(unit)


def test_rows_of_any_unit_agree_with_units_of_one(evaluator, statistics):
    policies = tuple(PolicySpec("namm", theta(seed), statistics) for seed in range(3))
    together = evaluator.evaluate(Unit(policies, REFS[2:6]))
    for policy, row in zip(policies, together, strict=True):
        for ref, got in zip(REFS[2:6], row, strict=True):
            alone = evaluator.evaluate(Unit((policy,), (ref,)))[0][0]
            assert (got.task, got.index, got.score, got.prediction) == (
                alone.task,
                alone.index,
                alone.score,
                alone.prediction,
            )
            assert got.logprob == pytest.approx(alone.logprob, abs=1e-4)
            assert got.kept == pytest.approx(alone.kept, abs=1e-6)


def changed(array: np.ndarray) -> np.ndarray:
    """The same numbers but for the last bit of the first one."""
    other = array.copy()
    other[0] = np.nextafter(other[0], np.inf, dtype=other.dtype)
    return other


def test_policies_of_one_unit_differ_in_theta_alone(evaluator, statistics):
    """Rows share one set of statistics: a row with others would be scored with its neighbour's, and nobody told."""
    mean, var, count = statistics
    first = PolicySpec("namm", theta(0), statistics)
    equal = PolicySpec("namm", theta(1), (mean.copy(), var.copy(), count))
    assert evaluator.evaluate(Unit((first, equal), REFS[:1]))[1] == evaluator.evaluate(Unit((equal,), REFS[:1]))[0]
    for other in (
        PolicySpec("namm", theta(1)),
        PolicySpec("namm", theta(1), (changed(mean), var, count)),
        PolicySpec("namm", theta(1), (mean, changed(var), count)),
        PolicySpec("namm", theta(1), (mean, var, count + 1)),
        PolicySpec("namm", theta(1), statistics, budget=0.2),
        PolicySpec("l2", budget=0.2),
    ):
        for unit in ((first, other), (other, first), (first, equal, other)):
            with pytest.raises(ValueError, match="one unit") as error:
                evaluator.evaluate(Unit(unit, REFS[:1]))
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["h2o", "l2", "streaming", "random"])
@pytest.mark.parametrize("budget", [0.2, 0.5])
def test_baselines_hold_their_budget_at_the_end_of_the_prompt(evaluator, name, budget):
    results = evaluator.evaluate(Unit((PolicySpec(name, budget=budget),), REFS))[0]
    assert all(abs(r.kept - budget) < 0.006 for r in results)


def test_options_reach_the_policy(evaluator):
    """The first tokens are sinks: by default 4 of them, here 16, within the same budget."""
    for options, sinks in (({}, 4), ({"sinks": 16}, 16)):
        seen = evaluator.reading(PolicySpec("streaming", budget=0.2, options=options), REFS[0])
        held = seen.held.mean(axis=(0, 1))
        assert held[:sinks] == pytest.approx(1) and held[sinks] == 0 and held.sum() == pytest.approx(40)


def test_the_oracle_keeps_little_and_answers(evaluator):
    results = evaluator.evaluate(Unit((PolicySpec("oracle"),), REFS))[0]
    assert np.mean([r.kept for r in results]) < 0.15
    assert np.mean([r.score for r in results]) >= 0.85


def test_base_scores_and_prompts_are_kept_in_redis(small_model):
    """A second worker finds both, and gets the same bits; another stretch of the model has other base scores."""
    unit = Unit((PolicySpec("full"),), REFS[:3])
    with private_redis() as url:

        def worker(alpha: float) -> Evaluator:
            model = ModelConfig(str(small_model), ntk_alpha=alpha)
            return Evaluator(EvaluatorConfig(model, TASKS, NammConfig(update_interval=64), redis_url=url))

        first, second, other = worker(4), worker(4), worker(1)
        results = first.evaluate(unit)
        assert first.arrays.misses == 4  # three prompts and one unit of base scores
        assert second.evaluate(unit) == results
        assert (second.arrays.hits, second.arrays.misses) == (1, 0)
        assert other.evaluate(unit) != results
        assert (other.arrays.hits, other.arrays.misses) == (3, 1)


def test_a_reading_agrees_with_the_kept_fraction(evaluator, statistics):
    spec = PolicySpec("namm", theta(1), statistics)
    seen = evaluator.reading(spec, REFS[0])
    assert "".join(seen.tokens) == evaluator.target.tasks.sample(*REFS[0]).prompt
    kept = evaluator.evaluate(Unit((spec,), REFS[:1]))[0][0].kept
    assert seen.held.mean() == pytest.approx(kept, abs=1e-6)
    assert any(":" in seen.tokens[i] for i in np.flatnonzero(seen.relevant))


def test_statistics_leave_features_normalised(evaluator, statistics):
    mean, var, count = statistics
    assert mean.shape == var.shape == (17,) and (var > 0).all()
    # 2 prompts of 200 tokens, 3 layers, 2 KV heads; updates of 64 see 64, 128 and 192 tokens
    assert count == 2 * 3 * 2 * (64 + 128 + 192)


@pytest.mark.parametrize(
    "policy, message",
    [
        (PolicySpec("h20", budget=0.5), "unknown policy 'h20'"),
        (PolicySpec("h2o"), "needs a budget"),
        (PolicySpec("h2o", budget=1.5), "policy h2o: a budget as a fraction"),
        (PolicySpec("snapkv", budget=0.5, options={"windows": 64}), "unknown option 'windows'; did you mean 'window'"),
        (PolicySpec("snapkv", budget=0.5, options={"kernel": 4}), "policy snapkv: kernel must be odd"),
        (PolicySpec("full", options={"sinks": 4}), "policy full has no options"),
        (PolicySpec("full", budget=0.5), "policy full takes no budget"),
        (PolicySpec("oracle", budget=0.5), "policy oracle takes no budget"),
        (PolicySpec("namm"), "needs a theta"),
        (PolicySpec("namm", theta(0), budget=0.5), "namm takes no budget: its threshold decides"),
        (PolicySpec("namm", theta(0), options={"hidden": 8}), "namm has no options"),
    ],
)
def test_bad_policies_are_one_clear_line(evaluator, policy, message):
    with pytest.raises(ValueError, match=message) as error:
        evaluator.evaluate(Unit((policy,), REFS[:1]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model, tasks, message",
    [
        ({"path": "nowhere/at/all"}, {}, "model folder nowhere/at/all does not exist"),
        ({"sha256": "0" * 64}, {}, "not those the job was written for"),
        ({}, {"source": "recal"}, "did you mean 'recall'"),
        ({}, {"tokns": 3}, "did you mean 'tokens'"),
    ],
)
def test_bad_input_is_one_clear_line(small_model, model, tasks, message):
    with pytest.raises(ValueError, match=message) as error:
        Evaluator(EvaluatorConfig(ModelConfig(**{"path": str(small_model), **model}), {**TASKS, **tasks}))
    assert "\n" not in str(error.value)


def test_the_fused_kernels_score_as_the_tiles_do(evaluator):
    """Triton's interpreter runs them here; what they compute differs by rounding, which shows that they ran."""
    pytest.importorskip("triton")
    fused = Evaluator(dataclasses.replace(evaluator.config, fused=True))
    unit = Unit((PolicySpec("namm", theta(0)),), (REFS[3], REFS[5], REFS[6]))
    ours, plain = fused.evaluate(unit)[0], evaluator.evaluate(unit)[0]
    for one, other in zip(ours, plain, strict=True):
        assert other.kept < 1 and one.kept == pytest.approx(other.kept, abs=0.01)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert [one.logprob for one in ours] != [other.logprob for other in plain]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the kernels can run")
def test_fused_kernels_that_cannot_run_are_refused_and_auto_leaves_them_out(small_model):
    """In a process of its own, without the interpreter that the other tests use."""
    program = """
import sys
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator

for fused in (False, "auto", True):
    try:
        print(Evaluator(EvaluatorConfig(ModelConfig(sys.argv[1]), {"source": "recall"}, fused=fused)).fused)
    except ValueError as error:
        print(error)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program, str(small_model)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout
    off, auto, on = said.splitlines()
    assert (off, auto) == ("False", "False") and on.startswith("fused attention ")
