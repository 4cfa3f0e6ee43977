"""One budget shared among a model's layers by their depth, or among its heads, and a memory whose numbers say how."""

from __future__ import annotations

import dataclasses

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
    assert torch.allclose(shares(torch.full((1, 4), 0.7), 30, 3), torch.ones(1, 30, 3, dtype=torch.float64))
    found, *others = shares(torch.tensor([[0.0, 1.0, 0.0]]), 30, 3)[0].numpy().T
    assert len(others) == 2 and all(np.array_equal(other, found) for other in others)
    assert found.mean() == pytest.approx(1) and found.argmax() in (14, 15)
    np.testing.assert_allclose(found, found[::-1], rtol=1e-6)
    logs = np.interp((np.arange(30) + 0.5) / 30 * 3 - 0.5, range(3), [0.0, 1.0, 0.0])
    np.testing.assert_allclose(found, 30 * np.exp(logs) / np.exp(logs).sum(), rtol=1e-6)
    assert (shares(torch.tensor([[0.3], [2.0]]), 5, 1) == 1).all()  # one depth tells no layers apart


def test_heads_have_shares_of_their_own_on_the_model_that_they_belong_to():
    logs = torch.tensor([[[0.0, 2.0], [1.0, -1.0], [0.5, 0.5]]])
    found = shares(logs, 3, 2)[0].numpy()
    np.testing.assert_allclose(found, 6 * np.exp(logs[0]) / np.exp(logs[0]).sum(), rtol=1e-6)
    for layers, heads in ((3, 1), (4, 2), (2, 3)):
        assert (shares(logs, layers, heads) == torch.ones(1, layers, heads)).all()


def test_what_a_layer_cannot_use_goes_to_the_others():
    share = torch.tensor([[[2.4], [0.4], [0.2]]], dtype=torch.float64)

    def given(mean: int, seen: int, least: int = 1) -> list[int]:
        return allotted(torch.tensor([mean]), torch.tensor([seen]), share, least).flatten().tolist()

    assert given(100, 1000) == [240, 40, 20]
    assert given(100, 210) == [210, 60, 30]  # 90 for two layers, as 2 to 1
    assert given(100, 120) == [120, 120, 60]
    assert given(100, 100) == [100, 100, 100]
    assert given(1, 1000) == [2, 1, 1]  # never nothing
    assert given(100, 1000, least=30) == [231, 38, 30]  # 270 for two, as 6 to 1
    assert given(100, 1000, least=50) == [200, 50, 50]
    assert given(100, 1000, least=200) == [200, 50, 50]


@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_and_what_lies_between_them_is_in_proportion(seed):
    random = np.random.default_rng(seed)
    share = np.exp(random.normal(size=(4, 5, 3)) * 2)
    share /= share.mean((1, 2), keepdims=True)
    mean, seen, least = random.integers(1, 300, 4), random.integers(300, 900, 4), 9
    found = allotted(torch.tensor(mean), torch.tensor(seen), torch.tensor(share), least).numpy()
    for row in range(4):
        low, high = max(int(min(least, mean[row] / 2)), 1), seen[row]
        assert low <= found[row].min() and found[row].max() <= high
        assert mean[row] * 15 - 15 <= found[row].sum() <= mean[row] * 15 + (15 if mean[row] < 2 else 0)
        between = (found[row] > low) & (found[row] < high)
        level = found[row][between] / share[row][between]
        rounding = 1 / share[row][between]
        assert not len(level) or level.max() <= (level + rounding).min()  # one level, rounded down, fits them all


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


@pytest.mark.parametrize("budget", [24, 0.3])
def test_a_memory_keeps_its_size_and_gives_each_head_its_share(budget):
    model, tokens = tiny_llama(), 4 * INTERVAL
    layers, heads = model.config.num_hidden_layers, model.config.num_key_value_heads
    config = dataclasses.replace(CONFIG, depths=layers, heads=heads, sinks=2, recent=4)
    logs = torch.linspace(1, -1, layers * heads).view(layers, heads)
    memory = Namm(config, torch.cat([logs.flatten(), torch.tensor([1.0, 0.0])]), budget=budget)
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    with MemoryCache(model, memory) as cache, torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        kept = [[positions.tolist() for positions in cache.kept_positions(layer)[0]] for layer in range(layers)]
    size = 24 if budget == 24 else round(0.3 * tokens)
    wanted = allotted(torch.tensor([size]), torch.tensor([tokens]), shares(logs[None], layers, heads), least=7)[
        0
    ].tolist()
    for layer, want in enumerate(wanted):
        assert [len(positions) for positions in kept[layer]] == want
        for positions in kept[layer]:
            assert positions[:2] == [0, 1] and positions[-4:] == list(range(tokens - 4, tokens))
    counts = [len(positions) for layer in kept for positions in layer]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    assert size * layers * heads - layers * heads <= sum(counts) <= size * layers * heads


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
    for wrong in ({"heads": 2}, {"heads": 2, "depths": 3, "over": "layer"}, {"heads": -1}):
        with pytest.raises(ValueError, match="heads is at least 0, and 0 without depths or with over: layer, not"):
            NammConfig(selection="budget", **wrong)
