"""Any number of memories on one model, in any order and from several threads; then the model is as it was."""

from __future__ import annotations

import gc
import threading
from itertools import permutations

import pytest
import torch
from transformers import GenerationConfig

from namm_core import MemoryCache
from namm_core.policies import Streaming
from tests.namm_core.matrix import CACHE
from tests.tiny_models import tiny_llama

IDS = torch.randint(1, 97, (1, 60), generator=torch.Generator().manual_seed(1))


def state(model) -> tuple:
    """All that a memory might leave behind on a model."""
    return (
        [(module.config._attn_implementation, module.config.to_dict()) for module in (model, model.model)],
        [(len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.modules()],
        model.generation_config.to_dict(),
        sorted(model.__dict__),
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )


def assert_as_before(model, before: tuple) -> None:
    *now, weights = state(model)
    assert now == list(before[:-1])
    assert all(torch.equal(weights[name], tensor) for name, tensor in before[-1].items())


def greedy(model, cache) -> list[int]:
    return model.generate(IDS, max_new_tokens=6, do_sample=False, **{CACHE: cache})[0, 60:].tolist()


@pytest.mark.parametrize("order", permutations(range(3)), ids=str)
def test_memories_leave_in_any_order(order):
    """Those that stay go on working; after the last the model is as it was, its settings included."""
    model = tiny_llama()
    model.generation_config.use_cache = False
    before = state(model)
    with MemoryCache(model, Streaming(16, 16)) as alone:
        wanted = greedy(model, alone)
    assert_as_before(model, before)
    caches = [MemoryCache(model, Streaming(16, 16)) for _ in range(3)]
    for leaving in order:
        assert greedy(model, caches[leaving]) == wanted
        caches[leaving].detach()
        caches[leaving].detach()  # once more changes nothing
    assert_as_before(model, before)


def test_a_memory_that_is_dropped_leaves_too():
    model = tiny_llama()
    before = state(model)
    first, second = MemoryCache(model, Streaming(16, 16)), MemoryCache(model, Streaming(16, 16))
    del first
    gc.collect()
    assert len(greedy(model, second)) == 6
    del second
    gc.collect()
    assert_as_before(model, before)


def test_of_the_model_and_of_the_model_inside_it():
    """Both have one attention function: whoever leaves first must not take it from the other."""
    model = tiny_llama()
    before = state(model)
    outer, inner = MemoryCache(model, Streaming(16, 16)), MemoryCache(model.model, Streaming(16, 16))
    outer.detach()
    with torch.no_grad():
        model.model(IDS, **{CACHE: inner})
    assert inner.fed == [60]
    inner.detach()
    assert_as_before(model, before)


def test_threads_open_and_close_memories_on_one_model():
    model = tiny_llama()
    before = state(model)
    with MemoryCache(model, Streaming(16, 16)) as alone:
        wanted = greedy(model, alone)
    start, got = threading.Barrier(4), []

    def user() -> None:
        start.wait()
        for _ in range(5):
            with MemoryCache(model, Streaming(16, 16)) as cache:
                got.append(greedy(model, cache))

    threads = [threading.Thread(target=user) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [wanted] * 20
    assert_as_before(model, before)


def test_what_somebody_else_set_on_the_model_stays():
    """A `generate` set on the model itself (as training libraries do) is called, and is there afterwards."""
    model, calls = tiny_llama(), []

    def theirs(*arguments, **settings):
        calls.append(settings)
        return type(model).generate(model, *arguments, **settings)

    model.generate = theirs
    with MemoryCache(model, Streaming(16, 16)) as cache:
        assert len(greedy(model, cache)) == 6
        model.generation_config = GenerationConfig(use_cache=False)
    assert model.generate is theirs and len(calls) == 1
    assert model.generation_config.use_cache is False
