"""Attention in tiles: all ways to the same numbers agree. About a second."""

import copy
from contextlib import nullcontext

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


def read(model, policy, tiled: bool = True, **settings) -> tuple[torch.Tensor, torch.Tensor, list]:
    """Logits, kept counts and all kept positions after two prompts, for each of two candidates."""
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 64, (tokens,), generator=random) for tokens in (700, 670)] * 2
    with MemoryCache(model, policy, tiled) as cache, torch.inference_mode():
        logits, _ = prefill(model, prompts, cache, **settings)
        kept = [head for layer in range(2) for row in cache.kept_positions(layer) for head in row]
        return logits, cache.kept_counts(), kept


def policies() -> dict:
    thetas = 0.3 * torch.randn(2, 4172, generator=torch.Generator().manual_seed(2))
    return {"namm": Namm(NammConfig(update_interval=160), thetas), "h2o": H2O(0.3, update_interval=160)}


@pytest.mark.parametrize("sharpness", [1, 1000])
@pytest.mark.parametrize("policy", ["namm", "h2o"])
def test_logits_that_are_bounded_and_those_that_are_not(model, policy, sharpness):
    """In tiles, exponentials are taken at once where none can overflow; in one tile for all, never."""
    sharp = copy.deepcopy(model)
    for layer in sharp.model.layers:
        layer.self_attn.q_proj.weight.data *= sharpness
    largest = tiles_bound(sharp)
    assert largest < tiles.LARGEST if sharpness == 1 else largest > 100, "exp(100) is more than float32 holds"
    logits, counts, kept = read(sharp, policies()[policy])
    assert len(counts.unique()) > 1 or policy == "h2o"
    others = read(sharp, policies()[policy], tiled=False)
    torch.testing.assert_close(others[0], logits, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(kept, others[2], strict=True))


def tiles_bound(model) -> float:
    """The largest logit of the first layer."""
    ids = torch.randint(0, 64, (1, 700), generator=torch.Generator().manual_seed(1))
    attention, heads = model.model.layers[0].self_attn, model.config.num_attention_heads
    with torch.no_grad():
        x = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
        q = attention.q_proj(x).unflatten(-1, (heads, 8)).norm(dim=-1).max()
        k = attention.k_proj(x).unflatten(-1, (2, 8)).norm(dim=-1).max()
    return float(q * k) * 8**-0.5


def test_loops_compiled_and_not(model):
    if not loops.NUMBA:
        pytest.skip("numba is not installed")
    logits, _, kept = read(model, policies()["namm"])
    with loops.left_out():
        others = read(model, policies()["namm"])
    torch.testing.assert_close(others[0], logits, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(kept, others[2], strict=True))


def test_one_call_and_several(model):
    logits, _, kept = read(model, policies()["namm"])
    others = read(model, policies()["namm"], at_once=4 * 160)
    torch.testing.assert_close(others[0], logits, rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(kept, others[2], strict=True))


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_hidden_in_a_tile(compiled):
    if compiled and not loops.NUMBA:
        pytest.skip("numba is not installed")
    weights = torch.rand(2, 3, 5, 70, generator=torch.Generator().manual_seed(0))
    # Head 0 has no token in its first ten columns; the last five keys are the queries' own tokens.
    seen = torch.arange(70) <= torch.arange(65, 70)[:, None]
    seen = torch.stack([seen & (torch.arange(70) >= 10), seen])[:, None].expand(2, 3, 5, 70)
    settled = weights.clone()
    with nullcontext() if compiled else loops.left_out():
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
