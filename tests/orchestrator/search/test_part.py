"""A search of a part of a vector: any search, on the numbers that are searched."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from orchestrator.search import lookup
from orchestrator.search.algorithms.cma_es import CMAESConfig
from orchestrator.search.part import PartSearch

CONFIG = CMAESConfig(population=8, sigma0=0.1, variant="full", seed=3)
START = np.linspace(-1, 1, 12)
PART = np.arange(12) % 3 == 0
TARGET = np.full(12, 0.5)


def fitness_of(candidates: np.ndarray) -> np.ndarray:
    return -np.linalg.norm(candidates - TARGET, axis=1)


@pytest.mark.parametrize("variant", ["full", "diagonal"])
def test_it_is_the_plain_search_on_those_numbers_and_leaves_the_others(variant):
    config = dataclasses.replace(CONFIG, variant=variant)
    search, plain = PartSearch(config, START, PART), lookup.started(config, START[PART])
    for generation in range(6):
        candidates = search.ask()
        assert candidates.dtype == np.float32 and np.array_equal(candidates[:, PART], plain.ask())
        assert (candidates[:, ~PART] == START[~PART].astype(np.float32)).all()
        fitness = fitness_of(candidates)
        search.tell(fitness)
        plain.tell(fitness)
        assert np.array_equal(search.mean[PART], plain.mean) and search.sigma == plain.sigma
        assert (search.generation, search.population, search.elite) == (generation + 1, 8, plain.elite)
    assert (search.mean[~PART] == START[~PART].astype(np.float32)).all()
    assert np.linalg.norm((search.mean - TARGET)[PART]) < np.linalg.norm((START - TARGET)[PART])


def test_of_told_candidates_only_the_part_counts():
    one, two = (PartSearch(CONFIG, START, PART) for _ in range(2))
    candidates = one.ask()
    one.tell(fitness_of(candidates))
    two.ask()
    elsewhere = candidates.copy()
    elsewhere[:, ~PART] = 7.0
    two.tell(fitness_of(candidates), elsewhere)
    assert np.array_equal(one.mean, two.mean)


@pytest.mark.parametrize("part", [PART[:-1], PART.astype(int), np.arange(12) == 0])
def test_a_part_that_does_not_fit_is_one_clear_line(part):
    with pytest.raises(ValueError) as caught:
        PartSearch(CONFIG, START, part)
    assert "\n" not in str(caught.value)
