"""OpenAI-ES: its gradient and Adam's steps, against the papers' formulas written out and torch's Adam."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.search.algorithms.openai_es import OpenAIES, OpenAIESConfig
from orchestrator.search.racing import RacingSpec
from orchestrator.search.ranks import centred_ranks, shared_ranks
from tests.orchestrator.landscape import job
from tests.orchestrator.search.searches import sphere


def by_hand(candidates: np.ndarray, fitness: np.ndarray, mean: np.ndarray, sigma: float) -> np.ndarray:
    """Salimans et al., Algorithm 1: (1 / n sigma) sum F_i epsilon_i, pair by pair, F_i counted out by comparisons."""
    gradient, n = np.zeros(len(mean)), len(fitness)
    told = [i for i in range(n) if np.isfinite(fitness[i]) and np.isfinite(fitness[i ^ 1])]
    for i in told:
        worse = sum(fitness[j] < fitness[i] for j in told)
        equal = sum(fitness[j] == fitness[i] for j in told) - 1
        centred = (worse + equal / 2) / (len(told) - 1) - 0.5
        gradient += centred * (candidates[i].astype(np.float64) - mean) / sigma
    return gradient / (n * sigma)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_every_step_is_torchs_adam_on_the_papers_gradient(betas):
    """Twelve generations with ties, and with missing candidates in some of them."""
    config = OpenAIESConfig(population=12, sigma0=0.1, learning_rate=0.02, beta1=betas[0], beta2=betas[1], seed=4)
    start = np.linspace(-1, 1, 9)
    search = OpenAIES(config, start)
    mean = torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([mean], lr=0.02, betas=betas, eps=1e-8, maximize=True)
    for generation in range(12):
        candidates = search.ask()
        fitness = np.round(sphere(candidates) * 4) / 4
        assert generation or len(np.unique(fitness)) < 12
        fitness[[1, 6, 7][: generation % 4]] = np.nan
        mean.grad = torch.tensor(by_hand(candidates, fitness, mean.detach().numpy(), 0.1))
        search.tell(fitness)
        adam.step()
        np.testing.assert_allclose(search.mean, mean.detach().numpy(), rtol=1e-6, atol=1e-7)
        assert search.sigma == 0.1


def test_candidates_are_pairs_about_the_mean():
    search = OpenAIES(OpenAIESConfig(population=8), np.full(50, 2.0))
    for _ in range(3):
        steps = search.ask() - search.mean.astype(np.float64)
        np.testing.assert_allclose(steps[0::2], -steps[1::2], atol=1e-6)
        assert np.abs(steps[0] - steps[2]).max() > 0.05
        search.tell(np.arange(8.0))


def test_a_missing_candidate_takes_its_mirror_image_along():
    """Otherwise the whole rank of the twin would pull the mean to its side."""
    config = OpenAIESConfig(population=8)
    one, both = OpenAIES(config, np.zeros(6)), OpenAIES(config, np.zeros(6))
    one.ask(), both.ask()
    one.tell(np.array([1, 2, 3, np.nan, 5, 6, 7, 8]))
    both.tell(np.array([1, 2, np.nan, np.nan, 5, 6, 7, 8]))
    assert one.mean.tobytes() == both.mean.tobytes()


def test_one_whole_pair_is_too_few():
    search = OpenAIES(OpenAIESConfig(population=6, sigma_decay=0.5), np.ones(4))
    search.ask()
    search.tell(np.array([1, 2, 3, np.nan, np.nan, 6]))
    assert np.array_equal(search.mean, np.ones(4)) and search.sigma == 0.065 and search.generation == 1


def test_equals_teach_nothing():
    """In whatever order they stand."""
    search = OpenAIES(OpenAIESConfig(population=16), np.zeros(6))
    for _ in range(5):
        search.ask()
        search.tell(np.full(16, 0.25))
    assert np.array_equal(search.mean, np.zeros(6)) and search.sigma == 0.065


def test_sigma_decays_as_it_is_told():
    search = OpenAIES(OpenAIESConfig(population=4, sigma0=0.5, sigma_decay=0.9), np.zeros(6))
    for _ in range(10):
        search.tell(sphere(search.ask()))
    assert search.sigma == pytest.approx(0.5 * 0.9**10)
    steps = search.ask() - search.mean
    assert steps.std() == pytest.approx(search.sigma, rel=0.5)


def test_ties_share_the_mean_of_their_ranks():
    assert list(shared_ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0]))) == [3, 0, 3, 1, 3]
    assert list(centred_ranks(np.array([1.0, 2.0, 2.0]))) == [-0.5, 0.25, 0.25]
    assert list(centred_ranks(np.array([5.0, 5.0]))) == [0, 0]
    values = np.random.default_rng(0).integers(0, 5, 40).astype(float)
    assert centred_ranks(values).sum() == pytest.approx(0)


def test_it_ranks_every_candidate_so_that_nobody_may_be_left_behind_in_a_race():
    assert OpenAIESConfig(population=8).elite == 8
    with pytest.raises(ValueError, match="racing has nobody to drop: search.algorithm openai_es learns from the rank"):
        job(search=OpenAIESConfig(population=8), racing=RacingSpec(True))
