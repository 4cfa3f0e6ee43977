"""Batched prefill and greedy decoding for evaluation: what a model answers, and how sure it was of the reference.

Rows are independent (candidate, sample) pairs, padded on the right. Knows nothing of tasks or text.
"""

from __future__ import annotations

import copy
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
    """Greedy tokens, up to the stop token, which is left out."""
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
    """Prefills all prompts in one call, decodes greedily, and scores the references by teacher forcing.

    prompts: per row (tokens,) int64; references: per row (answer tokens,) int64 as they follow the prompt;
    cache: a fresh `MemoryCache`, or None for the stock full cache; max_new_tokens: greedy tokens per row; stop:
    token ids that end an answer.
    """
    rows, lengths = len(prompts), torch.tensor([len(p) for p in prompts])
    past: Cache = DynamicCache(config=model.config) if cache is None else cache
    first, mask = prefill(model, prompts, past)
    kept = [[1.0] * len(past.layers)] * rows if cache is None else cache.kept_fractions()
    wanted = torch.nn.utils.rnn.pad_sequence(references, batch_first=True).to(model.device)
    scored = _forced(model, _fork(past), first, mask, lengths, wanted)
    chosen = scored.log_softmax(-1).gather(-1, wanted[..., None])[..., 0].double().cpu()
    greedy = _greedy(model, past, first, mask, lengths, max_new_tokens, stop)
    return [
        Answer(greedy[i], float(chosen[i, : len(reference)].mean()), kept[i]) for i, reference in enumerate(references)
    ]


def prefill(model: PreTrainedModel, prompts: list[Tensor], past: Cache) -> tuple[Tensor, Tensor]:
    """Reads all prompts, rows padded on the right, into the fresh cache `past`.

    What precedes the first update is the same for all candidates of a sample, and computed once.

    Returns the logits (rows, vocabulary) of each row's last token and the mask (rows, columns) of real tokens.
    """
    lengths = torch.tensor([len(p) for p in prompts])
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    start = 0
    samples = _samples(prompts)
    if isinstance(past, MemoryCache) and samples < len(prompts) and lengths.min() > past.policy.update_interval:
        start = past.policy.update_interval
        past.share()
        model(ids[:samples, :start].to(model.device), past_key_values=past, use_cache=True, logits_to_keep=1)
        past.spread(len(prompts) // samples)
    ends, which = torch.unique(lengths - 1 - start, return_inverse=True)
    out = model(
        ids[:, start:].to(model.device),
        attention_mask=mask.to(model.device),
        past_key_values=past,
        use_cache=True,
        logits_to_keep=ends,  # on the CPU: it indexes the last layer's output, which may live on another device
    )
    return out.logits[torch.arange(len(prompts)), which].float(), mask


def _samples(prompts: list[Tensor]) -> int:
    """How many prompts there are before all of them come again, in the same order, for the next candidate."""
    rows = len(prompts)
    for samples in range(1, rows):
        if rows % samples == 0 and all(torch.equal(prompts[i], prompts[i - samples]) for i in range(samples, rows)):
            return samples
    return rows


def _forced(
    model: PreTrainedModel, past: Cache, logits: Tensor, mask: Tensor, lengths: Tensor, wanted: Tensor
) -> Tensor:
    """Logits (rows, steps, vocabulary) of every row along `wanted` (rows, steps); logits: those of the first step."""
    found = [logits]
    for step in range(wanted.shape[1] - 1):
        mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        found.append(_next(model, past, wanted[:, step], mask, lengths + step))
    return torch.stack(found, dim=1)


def _greedy(
    model: PreTrainedModel,
    past: Cache,
    logits: Tensor,
    mask: Tensor,
    lengths: Tensor,
    steps: int,
    stop: tuple[int, ...],
) -> list[list[int]]:
    """Each row's likeliest tokens, up to `steps`, without the token that stops it; logits: those of the first step.

    Rows that have stopped leave the batch as soon as they are half of it, since moving the others costs something too.
    """
    rows: list[list[int]] = [[] for _ in lengths]
    here = torch.arange(len(rows))  # which rows are still in the batch
    over = torch.zeros(len(rows), dtype=torch.bool)  # of these, which have stopped
    for step in range(steps):
        token = logits.argmax(-1)
        over |= torch.isin(token.cpu(), torch.tensor(stop, dtype=torch.int64))
        for row, new in zip(here[~over].tolist(), token.cpu()[~over].tolist(), strict=True):
            rows[row].append(new)
        if step + 1 == steps or bool(over.all()):
            break
        if int(over.sum()) * 2 >= len(over):
            left = torch.nonzero(~over)[:, 0]
            past.batch_select_indices(left.to(model.device))
            token, mask, lengths = token[left.to(token.device)], mask[left], lengths[left]
            here, over = here[left], over[left]
        mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        logits = _next(model, past, token, mask, lengths + step)
    return rows


def _next(model: PreTrainedModel, past: Cache, token: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """Logits (rows, vocabulary) behind one more token (rows,) at `positions` (rows,)."""
    out = model(
        token[:, None],
        attention_mask=mask.to(model.device),
        position_ids=positions[:, None].to(model.device),
        past_key_values=past,
        use_cache=True,
    )
    return out.logits[:, -1].float()


def _fork(past: Cache) -> Cache:
    """A second continuation of the same cache: layers replace their tensors, never write into them."""
    twin = copy.copy(past)
    twin.layers = [copy.copy(layer) for layer in past.layers]
    return twin
