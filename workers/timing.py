"""How fast a model reads and writes with a cache, and how large that gets: one prompt, once. Knows no tasks or scores.

Seconds belong to a machine and its neighbours: nothing that is decided may depend on them.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from namm_core import MemoryCache


class Timing(NamedTuple):
    """One prompt and a forced continuation."""

    prompt_tokens: int
    prefill_seconds: float
    decoded_tokens: int
    decode_seconds: float
    cache_bytes: int
    """Keys and values, after the forward call at which the cache was largest."""
    state_bytes: int
    """All else that the cache held then: positions, the policy's state."""


@torch.inference_mode()
def measure(
    model: PreTrainedModel, ids: Tensor, cache: Cache | None, tokens: int, embedded: Tensor | None = None
) -> Timing:
    """Feeds a prompt (tokens,) in one call, then `tokens` tokens one by one, the same ones for every policy.

    embedded: (tokens, size), fed in the prompt's place where its ids alone do not say what it is.

    cache: a fresh one; None is the stock full cache. Updates of a memory among the decoded tokens are in their time.
    """
    past = DynamicCache(config=model.config) if cache is None else cache
    largest = (0, 0)

    def fed(name: str, some: Tensor) -> float:
        nonlocal largest
        _settle(model)
        started = time.perf_counter()
        model(**{name: some[None]}, past_key_values=past, use_cache=True, logits_to_keep=1)
        _settle(model)
        seconds = time.perf_counter() - started
        largest = max(largest, nbytes(past), key=sum)
        return seconds

    ids = ids.to(model.device)
    forced = ids[:tokens].repeat(-(-tokens // len(ids)))[:tokens]
    prefill = fed("input_ids", ids) if embedded is None else fed("inputs_embeds", embedded)
    decode = sum(fed("input_ids", token[None]) for token in forced)
    return Timing(len(ids), prefill, tokens, decode, *largest)


def nbytes(cache: Cache) -> tuple[int, int]:
    """Bytes of a cache's keys and values, and of the rest of it."""
    if isinstance(cache, MemoryCache):
        return cache.nbytes, cache.state_nbytes
    held = [layer for layer in cache.layers if layer.is_initialized]
    return sum(t.untyped_storage().nbytes() for layer in held for t in (layer.keys, layer.values)), 0


def _settle(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
