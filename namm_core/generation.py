"""Batched prefill and greedy decoding for evaluation: what a model answers, and how sure it was of the answer.

Rows are independent (candidate, sample) pairs, padded on the right. Knows nothing of tasks or text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from namm_core.cache import MemoryCache


@dataclass
class Answer:
    """What one row gave."""

    tokens: list[int]
    """Greedy tokens, without the stop token."""
    logprob: float
    """Mean log-probability of the reference answer's tokens, in nats."""
    kept: list[float]
    """Per layer: entries held / tokens seen, right after the last prompt token (mean over KV heads)."""


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    prompts: list[Tensor],
    references: list[Tensor],
    cache: MemoryCache | None,
    max_new_tokens: int,
    stop: tuple[int, ...] = (),
) -> list[Answer]:
    """Prefills all prompts in one call and decodes greedily; scores each reference answer by teacher forcing.

    prompts: per row (tokens,) int64; references: per row (answer tokens,) int64, tokenised as they follow the
    prompt; cache: a fresh `MemoryCache`, or None for the model's own full cache. The reference is scored along
    the decoding path where both agree and by a forced continuation where they part, so that an answer that is
    right costs nothing extra.
    """
    rows = len(prompts)
    lengths = [len(p) for p in prompts]
    longest = max(lengths)
    ids = torch.zeros(rows, longest, dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        ids[i, : lengths[i]] = prompt
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    past: Cache = DynamicCache(config=model.config) if cache is None else cache
    last = torch.tensor(lengths) - 1
    hidden = model.model(ids, attention_mask=None if bool(mask.all()) else mask, past_key_values=past)[0]
    logits = model.lm_head(hidden[torch.arange(rows), last]).float()
    if cache is None:
        kept = [[1.0] * len(past.layers)] * rows
    else:
        shares = cache.kept_counts().double().mean(-1) / torch.tensor(cache.fed)
        kept = shares.T.tolist()
    return [
        _decode(model, past if rows == 1 else None, logits[i], references[i], max_new_tokens, stop, kept[i])
        for i in range(rows)
    ]
