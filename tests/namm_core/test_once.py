"""A memory that forgets once: at the end of its context what its policy would, and nothing before or after."""

from __future__ import annotations

import pytest
import torch

from namm_core import MemoryCache
from namm_core.once import Once
from tests.namm_core.matrix import CACHE
from tests.namm_core.policy_matrix import POLICIES
from tests.tiny_models import tiny_llama

CONTEXT, REST = 64, 75
"""The rest is longer than the context: a policy with that update interval would forget a second time."""


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def text():
    return torch.randint(1, 97, (1, CONTEXT + REST), generator=torch.Generator().manual_seed(2))


def read(model, policy, *pieces) -> tuple[list[list[list[int]]], torch.Tensor]:
    """([layer][KV head] -> positions held, logits of the last token)."""
    with MemoryCache(model, policy) as cache, torch.inference_mode():
        for piece in pieces:
            logits = model(piece, **{CACHE: cache}).logits[:, -1]
        layers = range(len(cache.layers))
        return [[head.tolist() for head in cache.kept_positions(layer)[0]] for layer in layers], logits


@pytest.mark.parametrize("name", POLICIES)
def test_it_forgets_at_the_end_of_the_context_alone(model, text, name):
    policy = POLICIES[name](16)  # its own interval is not used
    whole, logits = read(model, Once(policy, CONTEXT), text)
    pieces = read(model, Once(policy, CONTEXT), text[:, :23], text[:, 23:CONTEXT], text[:, CONTEXT:])
    assert pieces[0] == whole
    assert torch.allclose(pieces[1], logits, atol=1e-4)
    at_end, _ = read(model, POLICIES[name](CONTEXT), text[:, :CONTEXT])
    later = list(range(CONTEXT, CONTEXT + REST))
    assert whole == [[head + later for head in layer] for layer in at_end]
    assert policy.update_interval == 16


def test_before_the_end_of_the_context_all_is_held(model, text):
    held, _ = read(model, Once(POLICIES["h2o"](16), CONTEXT), text[:, : CONTEXT - 1])
    assert held == [[list(range(CONTEXT - 1))] * 2] * 2


def test_a_context_has_a_token():
    with pytest.raises(ValueError, match="context is an integer of at least 1, not 0"):
        Once(POLICIES["h2o"](16), 0)
