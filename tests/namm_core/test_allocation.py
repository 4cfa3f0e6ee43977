"""One budget shared among a model's layers by their depth, and a memory whose numbers say how."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from namm_core import MemoryCache, Namm, NammConfig
from namm_core.allocation import allotted, shares
from namm_core.scoring import rules, scorer
from tests.tiny_models import tiny_llama

INTERVAL = 32
CONFIG = NammConfig(update_interval=INTERVAL, selection="budget", features=("key_norm",), scorer="linear", depths=2)


def test_equal_weights_are_equal_shares_and_others_follow_the_depth():
    assert torch.allclose(shares(torch.full((1, 4), 0.7), 30), torch.ones(1, 30, dtype=torch.float64))
    found = shares(torch.tensor([[0.0, 1.0, 0.0]]), 30)[0].numpy()
    assert found.mean() == pytest.approx(1) and found.argmax() in (14, 15)
    np.testing.assert_allclose(found, found[::-1], rtol=1e-6)
    logs = np.interp((np.arange(30) + 0.5) / 30 * 3 - 0.5, range(3), [0.0, 1.0, 0.0])
    np.testing.assert_allclose(found, 30 * np.exp(logs) / np.exp(logs).sum(), rtol=1e-6)
    assert shares(torch.tensor([[0.3], [2.0]]), 5).tolist() == [[1.0] * 5] * 2  # one depth tells no layers apart


def test_what_a_layer_cannot_use_goes_to_the_others():
    share = torch.tensor([[2.4, 0.4, 0.2]], dtype=torch.float64)

    def given(mean: int, seen: int) -> list[int]:
        return [int(allotted(torch.tensor([mean]), torch.tensor([seen]), share, layer)) for layer in range(3)]

    assert given(100, 1000) == [240, 40, 20]
    assert given(100, 210) == [210, 60, 30]  # 90 for two layers, as 2 to 1
    assert given(100, 120) == [120, 120, 60]
    assert given(100, 100) == [100, 100, 100]
    assert given(1, 1000) == [2, 1, 1]  # never nothing


@pytest.mark.parametrize("budget", [24, 0.3])
def test_a_memory_keeps_its_size_and_shares_it_by_depth(budget):
    model, tokens = tiny_llama(), 4 * INTERVAL
    layers = model.config.num_hidden_layers
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    kept = {}
    for weights in ((0.0, 0.0), (0.5, -0.5)):
        memory = Namm(CONFIG, np.array([*weights, 1.0, 0.0]), budget=budget)
        with MemoryCache(model, memory) as cache, torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True)
            kept[weights] = [len(cache.kept_positions(layer)[0][0]) for layer in range(layers)]
    size = 24 if budget == 24 else round(0.3 * tokens)
    assert kept[0.0, 0.0] == [size] * layers
    uneven = kept[0.5, -0.5]
    assert uneven == sorted(uneven, reverse=True) and uneven[0] > size > uneven[-1]
    assert size * layers - layers <= sum(uneven) <= size * layers


def test_each_row_shares_as_its_own_numbers_say():
    model, tokens = tiny_llama(), 3 * INTERVAL
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))
    thetas = np.array([[0.5, -0.5, 1.0, 0.0], [-0.5, 0.5, 1.0, 0.0]])

    def lengths(theta: np.ndarray, rows: int) -> list[list[int]]:
        with MemoryCache(model, Namm(CONFIG, theta, budget=24)) as cache, torch.no_grad():
            model(ids.expand(rows, -1), past_key_values=cache, use_cache=True)
            layers = range(model.config.num_hidden_layers)
            return [[len(cache.kept_positions(layer)[row][0]) for layer in layers] for row in range(rows)]

    assert lengths(thetas, 2) == [lengths(theta, 1)[0] for theta in thetas]


def test_the_numbers_stand_in_front_and_a_rule_leaves_them_equal(tmp_path):
    assert list(scorer.layout(CONFIG)) == ["depth", "w", "b"] and scorer.num_parameters(CONFIG) == 4
    assert rules.start(CONFIG, "high_norm").tolist() == [0, 0, 1, 0]
    assert rules.linear_part(CONFIG).all()
    theta = np.array([0.5, -0.5, 1.0, 0.0], np.float32)
    Namm(CONFIG, theta).save_pretrained(tmp_path)
    read = Namm.from_pretrained(tmp_path, budget=0.3)
    assert read.config == CONFIG and np.array_equal(read.theta, theta)
    with pytest.raises(ValueError, match="depths is at least 0, and 0 without a budget to share, not 3"):
        NammConfig(depths=3)
