"""A memory inside `torch.autocast`, and in models that are compiled."""

from __future__ import annotations

import pytest
import torch

from namm_core import MemoryCache, loops
from namm_core.policies import Streaming
from tests.namm_core.matrix import CACHE, namm
from tests.tiny_models import tiny_llama

IDS = torch.randint(1, 97, (2, 60), generator=torch.Generator().manual_seed(1))
POLICIES = {"streaming": lambda: Streaming(16, 16), "padded": lambda: namm("padded"), "ragged": lambda: namm("ragged")}


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]()


@pytest.fixture(params=[True, False], ids=["loops", "tensors"])
def compiled_loops(request):
    before, loops.NUMBA = loops.NUMBA, request.param and loops.NUMBA
    yield
    loops.NUMBA = before


def read(model, cache) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(piece, **{CACHE: cache}).logits.float() for piece in IDS.split(25, dim=1)], dim=1)


def test_inside_autocast_a_memory_is_in_its_precision(policy, compiled_loops):
    """Logits are those of full precision but for rounding, up to the first update; then what is kept may differ."""
    model = tiny_llama(initializer_range=0.1)
    with MemoryCache(model, policy) as cache:
        wanted = read(model, cache)
    with MemoryCache(model, policy) as cache, torch.autocast("cpu", torch.bfloat16):
        got = read(model, cache)
        model.generate(torch.cat([IDS, IDS], dim=1), max_new_tokens=5, do_sample=False, **{CACHE: cache})
    assert cache.layers[0].stored.main()[0].dtype == torch.bfloat16 and cache.fed == [124, 124]
    torch.testing.assert_close(got[:, :16], wanted[:, :16], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("first", [True, False], ids=["in-then-out", "out-then-in"])
def test_autocast_may_begin_and_end_in_the_middle_of_a_text(policy, first):
    """The memory stays in the precision that it began with."""
    model = tiny_llama()
    with MemoryCache(model, policy) as cache:
        for inside in (first, not first):
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                assert read(model, cache).isfinite().all()
    assert cache.layers[1].stored.main()[0].dtype == (torch.bfloat16 if first else torch.float32)


def test_a_compiled_model_gives_what_it_gives_uncompiled(policy):
    """`model.compile()`: with a memory it runs uncompiled, and is compiled as before afterwards."""
    model, options = tiny_llama(), {"max_new_tokens": 5, "do_sample": False}
    with MemoryCache(model, policy) as cache:
        wanted = model.generate(IDS, **options, **{CACHE: cache})
    model.compile(backend="eager")
    compiled = model._compiled_call_impl
    with MemoryCache(model, policy) as cache:
        assert torch.equal(model.generate(IDS, **options, **{CACHE: cache}), wanted)
    assert model._compiled_call_impl is compiled is not None


def test_a_model_wrapped_by_compile_gives_what_it_gives_uncompiled(policy):
    model, options = tiny_llama(), {"max_new_tokens": 5, "do_sample": False}
    with MemoryCache(model, policy) as cache:
        wanted = read(model, cache)
        answer = model.generate(IDS, **options, **{CACHE: MemoryCache(model, policy)})
    wrapped = torch.compile(model, backend="eager")
    with MemoryCache(wrapped, policy) as cache:
        torch.testing.assert_close(read(wrapped, cache), wanted, atol=1e-5, rtol=0)
    with MemoryCache(wrapped, policy) as cache:
        assert torch.equal(wrapped.generate(IDS, **options, **{CACHE: cache}), answer)
