"""Attention in tiles: all ways to the same numbers agree. About a second."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_core import MemoryCache, Namm, NammConfig, loops
from namm_core.answering import prefill
from namm_core.attention import tiles
from namm_core.layer.blocks import Block
from namm_core.layer.memory_layer import MemoryLayer
from namm_core.policies import Streaming
from namm_core.policies.h2o import H2O
from namm_core.scoring import backward_attention


@pytest.fixture(scope="module", params=[1, 2, 3], ids="{} heads a group".format)
def model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2 * request.param,
        num_key_value_heads=2,
        head_dim=8,
    )
    return LlamaForCausalLM(config).eval()


def read(model, policy, **settings) -> tuple[torch.Tensor, torch.Tensor, list]:
    """Logits, kept counts and all kept positions after two prompts, for each of two candidates."""
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 64, (tokens,), generator=random) for tokens in (700, 670)] * 2
    with MemoryCache(model, policy) as cache, torch.inference_mode():
        logits, _ = prefill(model, prompts, cache, **settings)
        kept = [head for layer in range(2) for row in cache.kept_positions(layer) for head in row]
        return logits, cache.kept_counts(), kept


def policies() -> dict:
    thetas = 0.3 * torch.randn(2, 4172, generator=torch.Generator().manual_seed(2))
    return {"namm": Namm(NammConfig(update_interval=160), thetas), "h2o": H2O(0.3, update_interval=160)}


@pytest.mark.parametrize("policy", ["namm", "h2o"])
def test_logits_that_are_bounded_and_those_that_are_not(model, monkeypatch, policy):
    logits, counts, kept = read(model, policies()[policy])
    assert len(counts.unique()) > 1 or policy == "h2o"
    monkeypatch.setattr(tiles, "LARGEST", 0.0)
    monkeypatch.setattr(backward_attention, "LARGEST", 0.0)
    others = read(model, policies()[policy])
    torch.testing.assert_close(others[0], logits, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(kept, others[2], strict=True))


def test_loops_compiled_and_not(model, monkeypatch):
    if not loops.NUMBA:
        pytest.skip("numba is not installed")
    logits, _, kept = read(model, policies()["namm"])
    monkeypatch.setattr(loops, "NUMBA", False)
    others = read(model, policies()["namm"])
    torch.testing.assert_close(others[0], logits, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(kept, others[2], strict=True))


def test_one_call_and_several(model):
    logits, _, kept = read(model, policies()["namm"])
    others = read(model, policies()["namm"], at_once=4 * 160)
    torch.testing.assert_close(others[0], logits, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(kept, others[2], strict=True))


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_hidden_in_a_tile(monkeypatch, compiled):
    if compiled and not loops.NUMBA:
        pytest.skip("numba is not installed")
    monkeypatch.setattr(loops, "NUMBA", compiled)
    weights = torch.rand(2, 3, 5, 70, generator=torch.Generator().manual_seed(0))
    # Head 0 has no token in its first ten columns; the last five keys are the queries' own tokens.
    seen = torch.arange(70) <= torch.arange(65, 70)[:, None]
    seen = torch.stack([seen & (torch.arange(70) >= 10), seen])[:, None].expand(2, 3, 5, 70)
    settled = weights.clone()
    scale = tiles.settle(settled, [10, 0])
    assert torch.equal(settled, weights * seen)
    torch.testing.assert_close(scale, 1 / (weights * seen).sum(-1))


def test_the_longest_key_is_found_after_others_were_forgotten():
    """A bound that misses a key lets exponentials overflow. Keys are measured late where blocks before went untiled."""
    layer = MemoryLayer(Streaming(budget=64, update_interval=32), 0)
    random = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 2, 96, 8, generator=random)
    keys[0, :, 0] *= 100  # a sink, which stays
    layer.update(keys, keys)
    for block in layer.begin_read(96):
        layer.append(block.take(keys), block.take(keys), block)
        layer.finish(block)
    held = layer.content
    assert held.keys.shape[2] == 64
    torch.testing.assert_close(held.longest_keys(), keys[0, :, 0].norm(dim=-1))
    layer.append(keys[:, :, :1] * 2, keys[:, :, :1], Block([96], [1], [False], slice(0, 1)))
    torch.testing.assert_close(held.longest_keys(), 2 * keys[0, :, 0].norm(dim=-1))
