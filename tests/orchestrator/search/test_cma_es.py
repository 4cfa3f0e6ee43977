"""The search: the recorded optimiser's numbers, the same bits again, and what is missing left out."""

import hashlib
import json
import math
import time
import warnings

import numpy as np
import pytest
from cma.sigma_adaptation import CMAAdaptSigmaCSA
from safetensors.numpy import load_file

from namm_core.config import from_mapping
from orchestrator.search.algorithms.cma_es import CMAES, CMAESConfig

VARIANTS = ("diagonal", "isotropic", "full")
PAPER_SIZE = 4172


def evolve(search: CMAES, fitness, generations: int) -> CMAES:
    for _ in range(generations):
        search.tell(fitness(search.ask()))
    return search


def sphere(candidates: np.ndarray) -> np.ndarray:
    return -((candidates.astype(np.float64) - 0.3) ** 2).sum(axis=1)


def digest(search: CMAES, generations: int) -> str:
    seen = hashlib.sha256()
    for _ in range(generations):
        candidates = search.ask()
        seen.update(candidates.tobytes())
        search.tell(sphere(candidates))
    return seen.hexdigest()


# The recorded optimiser


@pytest.mark.parametrize(("size", "population"), [(12, 16), (30, 32)])
def test_full_follows_the_recorded_runs(golden, size, population):
    """x and fitness in; mean, step size, covariance and paths out. Recorded in float32, float64 here."""
    trace, run = load_file(golden / "cma_trace.safetensors"), f"n{size}p{population}"
    search = CMAES(CMAESConfig(variant="full", population=population), trace[f"{run}.init_mean"])
    for generation in range(8):
        recorded = {
            name: trace[f"{run}.g{generation}.{name}"]
            for name in ("x", "fitness", "mean", "sigma", "C", "evo_path_c", "evo_path_sigma")
        }
        search.ask()
        search.tell(recorded["fitness"], recorded["x"])
        strategy = search.strategy
        np.testing.assert_allclose(strategy.mean, recorded["mean"], rtol=0, atol=1e-7)
        np.testing.assert_allclose(search.sigma, recorded["sigma"], rtol=1e-6)
        np.testing.assert_allclose(strategy.sm.C, recorded["C"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(strategy.pc, recorded["evo_path_c"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(strategy.adapt_sigma.ps, recorded["evo_path_sigma"], rtol=0, atol=1e-5)


def test_full_has_the_recorded_constants(golden):
    recorded = json.loads((golden / "cma_constants.json").read_text())["constants"]
    small = [constants for constants in recorded if constants["param_size"] <= 100]
    assert len(small) >= 6
    for constants in small:
        config = CMAESConfig(variant="full", population=constants["pop_size"])
        strategy = CMAES(config, np.zeros(constants["param_size"])).strategy
        mu_eff = strategy.sp.weights.mueff
        rates = strategy.sm.parameters(mueff=mu_eff)
        ours = (mu_eff, rates["c1"], rates["cmu"], strategy.sp.cc)
        ours += (strategy.adapt_sigma.cs, strategy.adapt_sigma.damps)
        names = ("mu_eff", "c_1", "c_mu", "c_c", "c_sigma", "d_sigma")
        np.testing.assert_allclose(ours, [constants[name] for name in names], rtol=1e-6)
        np.testing.assert_allclose(strategy.sp.weights, constants["weights"], atol=1e-6)


# The same bits


@pytest.mark.parametrize("variant", VARIANTS)
def test_silent_and_without_files(variant, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cma_signals.in").write_text('{"CMA_on": 0, "timeout": 0}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = evolve(CMAES(CMAESConfig(variant=variant, population=12), np.zeros(9)), sphere, 3)
        search.ask()
        search.tell(np.where(np.arange(12) < 5, np.arange(12.0), np.nan))
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["cma_signals.in"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_equals_share_what_their_ranks_weigh(variant, mirrored):
    """Scores of few samples tie all the time; where a candidate stands in its generation must not count."""
    config = CMAESConfig(variant=variant, population=8, mirrored=mirrored)
    search = CMAES(config, np.zeros(9))
    candidates = search.ask().astype(np.float64)
    search.tell(np.array([1.0, 2, 2, 2, 1, 3, 0, 2]))
    weights = np.maximum(np.log(4.5) - np.log(np.arange(1, 9)), 0)
    weights = np.array([weights[5:7].mean(), *[weights[1:5].mean()] * 3, weights[5:7].mean(), weights[0], weights[7]])
    weights = np.append(weights, weights[1]) / (weights.sum() + weights[1])
    np.testing.assert_allclose(search.strategy.mean, weights @ candidates, rtol=1e-12, atol=1e-15)

    other, order = CMAES(config, np.zeros(9)), [5, 7, 1, 3, 2, 4, 0, 6]
    other.ask()
    other.tell(np.array([1.0, 2, 2, 2, 1, 3, 0, 2])[order], candidates[order])
    np.testing.assert_allclose(other.strategy.mean, search.strategy.mean, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(other.sigma, search.sigma, rtol=1e-12)
    if variant == "full":  # candidates differ: rounding turns eigenvectors of equal eigenvalues
        np.testing.assert_allclose(other.strategy.sm.C, search.strategy.sm.C, rtol=1e-9, atol=1e-12)
    else:
        np.testing.assert_allclose(other.ask(), search.ask(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_flat_generation_teaches_nothing(variant, mirrored):
    search = CMAES(CMAESConfig(variant=variant, population=16, mirrored=mirrored, elite_fraction=0.25), np.ones(9))
    for _ in range(100):
        search.ask()
        search.tell(np.full(16, 0.5))
    assert np.array_equal(search.mean, np.ones(9)) and search.sigma == 0.065


@pytest.mark.parametrize("elite_fraction", [0.25, 0.5])
@pytest.mark.parametrize("levels", [7, 3, 2])
def test_the_step_size_of_mirrored_pairs_does_not_fall_where_fitness_ties(levels, elite_fraction):
    """Twins that tie stand side by side, and cancelled: to 0.2 of unmirrored pairs' sigma in 100 generations at 2
    levels."""
    logs = {}
    for mirrored in (False, True):
        changes = []
        for seed in range(16):
            config = CMAESConfig(population=16, mirrored=mirrored, seed=seed, elite_fraction=elite_fraction)
            search, noise = CMAES(config, np.zeros(60)), np.random.RandomState(seed)
            evolve(search, lambda x, noise=noise: np.floor(noise.rand(len(x)) * levels), 100)
            changes.append(np.log(search.sigma / 0.065))
        logs[mirrored] = np.mean(changes)
    assert abs(np.expm1(logs[True] - logs[False])) < 0.2


# What is learnt from what


def test_what_is_told_is_what_was_evaluated():
    """The mean is the weighted mean of the float32 candidates, not of what pycma drew in float64."""
    search = CMAES(CMAESConfig(population=8, sigma0=1e-3), np.full(5, 100.0))
    candidates = search.ask()
    search.tell(np.arange(8.0))
    weights = np.log(4.5) - np.log(np.arange(1, 5))
    expected = weights @ candidates[:3:-1].astype(np.float64) / weights.sum()
    np.testing.assert_allclose(search.strategy.mean, expected, rtol=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_missing_candidate_is_left_out(variant):
    """Neither its place nor its vector counts, and the mean moves in proportion to what was told."""
    config = CMAESConfig(variant=variant, population=8)
    search, other = CMAES(config, np.zeros(5)), CMAES(config, np.zeros(5))
    fitness = np.array([np.nan, 5, 3, 1, np.nan, 4, 2, np.inf])
    candidates = search.ask()
    search.tell(fitness)
    weights = np.log(2.5) - np.log([1, 2])  # the best two of five
    expected = 5 / 8 * weights @ candidates[[1, 5]].astype(np.float64) / weights.sum()
    np.testing.assert_allclose(search.strategy.mean, expected, rtol=1e-12)

    other.ask()
    candidates[[0, 4, 7]] = 1e3
    other.tell(fitness, candidates)
    assert other.strategy.mean.tobytes() == search.strategy.mean.tobytes() and other.sigma == search.sigma
    assert np.array_equal(other.ask(), search.ask())


def test_a_full_generation_after_a_missing_candidate_is_an_ordinary_one():
    search = CMAES(CMAESConfig(population=8), np.zeros(5))
    search.ask()
    search.tell(np.array([1, 2, 3, 4, 5, 6, 7, np.nan]))
    before, candidates = search.strategy.mean.copy(), search.ask().astype(np.float64)
    search.tell(np.arange(8.0))
    weights = np.log(4.5) - np.log(np.arange(1, 5))
    assert not np.array_equal(before, search.strategy.mean)
    np.testing.assert_allclose(search.strategy.mean, weights @ candidates[:3:-1] / weights.sum(), rtol=1e-12)


def test_too_few_to_rank_teach_nothing():
    search = CMAES(CMAESConfig(population=8), np.ones(5))
    first = search.ask()
    search.tell([np.nan] * 6 + [1.0, 2.0])
    assert np.array_equal(search.mean, np.ones(5)) and search.sigma == 0.065 and search.generation == 1
    assert not np.array_equal(search.ask(), first)


@pytest.mark.parametrize(
    ("variant", "axes", "correlations"),
    [("diagonal", True, False), ("isotropic", False, False), ("full", True, True)],
)
def test_each_variant_learns_its_own_covariance(variant, axes, correlations):
    """f is 100 times steeper along some axis, and then along a direction that is no axis."""

    def spread(direction):
        def fitness(candidates):
            steep = candidates @ (direction / np.linalg.norm(direction))
            return -(candidates**2).sum(axis=1) - 1e4 * steep**2

        config = CMAESConfig(variant=variant, population=16, sigma0=0.3)
        search = evolve(CMAES(config, np.ones(4)), fitness, 60)
        drawn = search.ask() - search.mean
        many = [drawn]
        for _ in range(200):  # more draws of one distribution: too few finite values change nothing
            search.tell([1.0] + [np.nan] * 15)
            many.append(search.ask() - search.mean)
        values = np.linalg.eigvalsh(np.cov(np.concatenate(many).T))
        return math.sqrt(values[-1] / values[0])

    assert (spread(np.array([1.0, 0, 0, 0])) > 10) == axes
    assert (spread(np.array([1.0, 1, 1, 1])) > 10) == correlations


def test_pairs_are_symmetric_about_the_mean():
    search = CMAES(CMAESConfig(population=8, mirrored=True), np.full(50, 2.0))
    for _ in range(3):
        steps = search.ask() - search.strategy.mean
        np.testing.assert_allclose(steps[0::2], -steps[1::2], atol=1e-6)
        assert np.abs(steps[0] - steps[2]).max() > 0.05
        search.tell(np.arange(8.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_pairs_are_a_population(variant):
    """pycma would inject mirror images of the worst ones into so small a population, one at a time."""
    search = evolve(CMAES(CMAESConfig(variant=variant, population=4, mirrored=True), np.zeros(3)), sphere, 5)
    steps = search.ask() - search.strategy.mean
    np.testing.assert_allclose(steps[0::2], -steps[1::2], atol=1e-6)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_step_size_has_no_drift_of_its_own(mirrored):
    """Under random selection it may wander, not sink: pairs that cancel are allowed for."""
    change = []
    for seed in range(6):
        noise = np.random.default_rng(seed)
        search = CMAES(CMAESConfig(mirrored=mirrored, seed=seed), np.zeros(100))
        change.append(evolve(search, lambda x, noise=noise: noise.normal(size=len(x)), 200).sigma / 0.065)
    assert abs(np.log(change).mean()) < 0.6


def test_the_elite_is_the_given_part():
    search = CMAES(CMAESConfig(population=8, elite_fraction=0.25), np.zeros(5))
    candidates = search.ask().astype(np.float64)
    search.tell(np.arange(8.0))
    weights = np.log(2.5) - np.log([1, 2])
    np.testing.assert_allclose(search.strategy.mean, weights @ candidates[:5:-1] / weights.sum(), rtol=1e-12)


# The paper's size


@pytest.mark.parametrize("variant", ["diagonal", "isotropic"])
def test_a_generation_at_the_papers_size_costs_under_a_second(variant):
    search = CMAES(CMAESConfig(variant=variant), np.zeros(PAPER_SIZE))
    evolve(search, sphere, 1)
    start = time.perf_counter()
    evolve(search, sphere, 5)
    assert (time.perf_counter() - start) / 5 < 1.0


@pytest.mark.parametrize("variant", ["diagonal", "isotropic"])
def test_path_length_controls_the_step_at_the_papers_size(variant):
    """From 300 dimensions pycma's default is two-point adaptation, which takes two candidates for itself."""
    search = evolve(CMAES(CMAESConfig(variant=variant), np.zeros(PAPER_SIZE)), sphere, 3)
    assert isinstance(search.strategy.adapt_sigma, CMAAdaptSigmaCSA)
    steps = (search.ask() - search.mean) / search.sigma
    cosines = np.corrcoef(steps) - np.eye(32)
    assert np.abs(cosines).max() < 0.1


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "diagnal"}, "diagonal"),
        ({"population": 3}, "population"),
        ({"population": 9, "mirrored": True}, "even"),
        ({"sigma0": 0.0}, "sigma0"),
        ({"sigma0": math.nan}, "sigma0"),
        ({"seed": -1}, "seed"),
        ({"elite_fraction": 1.0}, "elite_fraction"),
    ],
)
def test_bad_settings_are_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        from_mapping(CMAESConfig, settings, where="search")
    assert "\n" not in str(caught.value)


def test_in_many_dimensions_the_covariance_is_decomposed_while_candidates_are_evaluated():
    """From what was told one generation before it falls due; told again, to the same bits."""

    def run() -> tuple[list[tuple[int, bool]], bytes]:
        search, rng, new = (
            CMAES(CMAESConfig(variant="full", population=4), np.zeros(500)),
            np.random.default_rng(0),
            [],
        )
        sampler, learnt = search.strategy.sm, [np.eye(100)]
        sampler.rarely = 3  # of 10, for which it takes more dimensions
        assert sampler.lazy_update_gap > 3
        for generation in range(45):
            before = sampler.count_eigen
            candidates = search.ask()
            if sampler.count_eigen > before:
                made_of = (sampler.B * sampler.D**2) @ sampler.B.T
                new.append((generation, bool(np.allclose(made_of, learnt[-2], rtol=0, atol=1e-12))))
            search.tell(rng.standard_normal(4) - (candidates**2).sum(1))
            learnt.append(sampler.C.copy())
            np.testing.assert_allclose(sampler.variances, np.diag(learnt[-1]), rtol=1e-12)
        return new, search.mean.tobytes()

    new, mean = run()
    assert len(new) >= 2 and all(right for _, right in new)
    assert run() == (new, mean)
