"""How fast a model reads and writes with a cache, and how large the cache gets: one prompt, once.

Seconds belong to a machine and its neighbours: nothing that is decided may depend on them. Knows no tasks or scores.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from namm_core import MemoryCache


class Timing(NamedTuple):
    """What one prompt and a forced continuation took."""

    prompt_tokens: int
    prefill_seconds: float
    decoded_tokens: int
    decode_seconds: float
    cache_bytes: int
    """Keys and values, after the forward call at which the cache was largest."""
    state_bytes: int
    """Everything else that the cache held then: positions, the policy's state."""


@torch.inference_mode()
def measure(
    model: PreTrainedModel, ids: Tensor, cache: Cache | None, tokens: int, embedded: Tensor | None = None
) -> Timing:
    """Feeds a prompt in one call, then `tokens` tokens one by one, the same ones for every policy.

    ids: (prompt tokens,) int64; embedded: (prompt tokens, size), fed in place of `ids` if these alone do not say what
    the prompt is; cache: a fresh one, or None for the stock full cache. If a memory updates among the decoded tokens,
    their time includes it.
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
    """Bytes of a cache's keys and values, and of everything else in it."""
    if isinstance(cache, MemoryCache):
        return cache.nbytes, cache.state_nbytes
    filled = [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin) and layer.is_initialized]
    held = [tensor for layer in filled for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.untyped_storage().nbytes() for tensor in held), 0


def _settle(model: PreTrainedModel) -> None:
    """Waits for the GPU, which runs behind the program."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
