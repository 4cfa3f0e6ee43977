"""The memory that is forgotten is given back: the cache's own count, held against the allocator's."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from namm_core import MemoryCache, Namm, NammConfig
from namm_core.policies import Full

INTERVAL = 32


def llama(head_size: int, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_size,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().to(dtype)


@pytest.fixture(scope="module", params=[(8, torch.float32), (128, torch.bfloat16)], ids=["float32", "bfloat16-128"])
def model(request) -> LlamaForCausalLM:
    return llama(*request.param)


class Uneven(Namm):
    """A NAMM, with its state, whose heads keep every second, fourth, ... token, so that padding would be waste."""

    def select(self, scores, view):
        heads = torch.arange(view.positions.shape[1])
        return (view.positions >= 0) & (view.positions % (2 + 2 * heads[:, None] + view.row[:, None, None]) == 0)


def uneven() -> Namm:
    return Uneven(NammConfig(update_interval=INTERVAL))


def text(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(1, 64, (rows, tokens), generator=torch.Generator().manual_seed(1))


def per_token(model: LlamaForCausalLM) -> int:
    return 2 * model.config.head_dim * model.dtype.itemsize


@torch.no_grad()
def test_storage_is_what_is_kept_in_prefill_and_decode(model):
    """At most 1.10 times the kept tokens' bytes after every call, through two updates in decode."""
    ids = text(3, 200)
    mask = torch.ones_like(ids)
    mask[1, :70] = mask[2, :131] = 0  # rows of unequal length are updated in different steps
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with MemoryCache(model, uneven()) as cache:
        for step in range(75):
            if step == 0:
                model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
            else:
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                positions = positions[:, -1:] + 1
                model(text(3, 1), attention_mask=mask, position_ids=positions, past_key_values=cache)
            kept = cache.kept_counts()
            assert kept.max() > 1.2 * kept.double().mean(), "heads should differ, or this shows nothing"
            assert cache.nbytes <= 1.10 * int(kept.sum()) * per_token(model)


@torch.no_grad()
def test_with_its_state_it_is_smaller_than_13_tenths_of_keys_and_values():
    """At head size 128 in bf16, in every phase of a hop."""
    model = llama(128, torch.bfloat16)
    with MemoryCache(model, uneven()) as cache:
        model(text(1, 512), past_key_values=cache)
        shares = []
        for _ in range(40):
            model(text(1, 1), past_key_values=cache)
            shares.append((cache.nbytes + cache.state_nbytes) / (int(cache.kept_counts().sum()) * per_token(model)))
    assert max(shares) <= 1.30


def allocated(run) -> int:
    """Bytes that `run` allocated and did not free, by PyTorch's CPU allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        held = run()
        gc.collect()
    del held
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


@torch.no_grad()
def test_the_allocator_says_the_same(model):
    def run() -> MemoryCache:
        cache = MemoryCache(model, uneven())
        model(text(2, 300), past_key_values=cache)
        for _ in range(30):
            model(text(2, 1), past_key_values=cache)
        caches.append(cache)
        return cache

    caches: list[MemoryCache] = []
    run()  # what is made once (tables, windows) is there
    taken = allocated(run)
    counted = caches[1].nbytes + caches[1].state_nbytes
    ages = 2 * 512 * 8 * 4  # the new policy's own table of ages
    assert counted <= taken + 4096 and taken <= 1.02 * counted + ages + 4096, (counted, taken)


@torch.no_grad()
def test_the_full_policy_costs_what_the_stock_cache_costs(model):
    with MemoryCache(model, Full(INTERVAL)) as cache:
        model(text(2, 100), past_key_values=cache)
    assert cache.nbytes == 3 * 2 * 2 * 100 * per_token(model)
