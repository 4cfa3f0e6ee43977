"""A memory knows which text it was fed: `generate` with another is refused, and `reset` makes it fresh."""

from __future__ import annotations

import pytest
import torch

from namm_core import MemoryCache
from namm_core.policies import Full, Streaming
from tests.namm_core.matrix import CACHE
from tests.tiny_models import tiny_llama

POLICIES = {"keeps everything": lambda: Full(16), "forgets": lambda: Streaming(16, 16)}
OPTIONS = {"max_new_tokens": 5, "do_sample": False}


def text(length: int, seed: int = 1, rows: int = 1) -> torch.Tensor:
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=POLICIES)
def memory(request):
    model = tiny_llama()
    with MemoryCache(model, POLICIES[request.param]()) as cache:
        yield model, cache


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    "length, seed", [(60, 1), (60, 9), (90, 9), (30, 9), (64, 9)], ids=["same", "other", "longer", "shorter", "as-long"]
)
def test_another_prompt_or_the_same_again_is_refused(memory, rows, length, seed):
    model, cache = memory
    model.generate(text(60, rows=rows), **OPTIONS, **{CACHE: cache})
    held = cache.kept_counts()
    with pytest.raises(ValueError, match=r"cache\.reset\(\)"):
        model.generate(text(length, seed, rows), **OPTIONS, **{CACHE: cache})
    assert cache.seen == 64 and torch.equal(cache.kept_counts(), held)
    cache.reset()
    got = model.generate(text(length, seed, rows), **OPTIONS, **{CACHE: cache})
    with MemoryCache(model, cache.policy) as fresh:
        assert torch.equal(got, model.generate(text(length, seed, rows), **OPTIONS, **{CACHE: fresh}))


def test_a_text_that_goes_on_is_taken(memory):
    """Whole, or its end alone with a mask of all of it, after a refusal too; also when embeddings were fed."""
    model, cache = memory
    said = model.generate(text(60), **OPTIONS, **{CACHE: cache})
    with pytest.raises(ValueError, match="reset"):
        model.generate(text(80, 9), **OPTIONS, **{CACHE: cache})
    said = model.generate(torch.cat([said, text(7, 3)], dim=1), **OPTIONS, **{CACHE: cache})
    fresh = torch.cat([said[:, -1:], text(7, 4)], dim=1)  # the last token was never fed
    mask = torch.ones(1, cache.seen + 8, dtype=torch.int64)
    model.generate(fresh, attention_mask=mask, **OPTIONS, **{CACHE: cache})
    with pytest.raises(ValueError, match="reset"):
        model.generate(fresh, attention_mask=mask, **OPTIONS, **{CACHE: cache})
    with MemoryCache(model, Full(16)) as embedded, torch.no_grad():
        model(inputs_embeds=model.get_input_embeddings()(text(10)), **{CACHE: embedded})
        model.generate(text(20), **OPTIONS, **{CACHE: embedded})


def test_rows_take_their_text_along(memory):
    model, cache = memory
    ids = text(40, rows=3)
    with torch.no_grad():
        for piece in ids.split(9, dim=1):
            model(piece, **{CACHE: cache})
    order = torch.tensor([2, 0])
    cache.batch_select_indices(order)
    with pytest.raises(ValueError, match="reset"):
        model.generate(torch.cat([ids[:2], ids[:2]], dim=1), **OPTIONS, **{CACHE: cache})
    cache.batch_repeat_interleave(2)
    options = {**OPTIONS, "do_sample": True, "num_return_sequences": 2}
    model.generate(torch.cat([ids[order], ids[order]], dim=1), **options, **{CACHE: cache})


def test_a_call_that_was_refused_leaves_no_trace(memory):
    model, cache = memory
    with torch.no_grad():
        model(text(20), **{CACHE: cache})
        with pytest.raises(ValueError, match="holds 1 rows"):
            model(text(5, 7, rows=2), **{CACHE: cache})
    cache = MemoryCache(model, cache.policy)
    with torch.no_grad():
        model(text(20), **{CACHE: cache})
        with pytest.raises(ValueError, match="2D padding mask"):
            model(text(5, 7), attention_mask=torch.zeros(1, 1, 5, 5), **{CACHE: cache})
    model.generate(text(30), **OPTIONS, **{CACHE: cache})
