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

    prompts: per row (tokens,) int64, or their embeddings (tokens, size); references: per row (answer tokens,) int64 as
    they follow the prompt; cache: a fresh `MemoryCache`, or None for the stock full cache; max_new_tokens: greedy
    tokens per row; stop: token ids that end an answer.
    """
    rows, lengths = len(prompts), torch.tensor([len(p) for p in prompts])
    past: Cache = DynamicCache(config=model.config) if cache is None else cache
    first, mask = prefill(model, prompts, past)
    kept = [[1.0] * len(past.layers)] * rows if cache is None else cache.kept_fractions()
    wanted = torch.nn.utils.rnn.pad_sequence(references, batch_first=True).to(model.device)
    forced = wanted if wanted.shape[1] > 1 else None
    scored, _ = _decode(model, _fork(past), first, mask, lengths, wanted.shape[1], forced, ())
    chosen = scored.log_softmax(-1).gather(-1, wanted[..., None])[..., 0].double().cpu()
    _, greedy = _decode(model, past, first, mask, lengths, max_new_tokens, None, stop)
    answers = []
    for i, reference in enumerate(references):
        tokens = greedy[i].tolist()
        cut = next((n for n, token in enumerate(tokens) if token in stop), len(tokens))
        answers.append(Answer(tokens[:cut], float(chosen[i, : len(reference)].mean()), kept[i]))
    return answers


def prefill(model: PreTrainedModel, prompts: list[Tensor], past: Cache) -> tuple[Tensor, Tensor]:
    """Reads all prompts, ids or embeddings, rows padded on the right, into the fresh cache `past`.

    What precedes the first update is the same for all candidates of a sample, and computed once.

    Returns the logits (rows, vocabulary) of each row's last token and the mask (rows, columns) of real tokens.
    """
    lengths = torch.tensor([len(p) for p in prompts])
    fed = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    name = "inputs_embeds" if fed.is_floating_point() else "input_ids"
    mask = torch.arange(fed.shape[1]) < lengths[:, None]
    start = 0
    samples = _samples(prompts)
    if isinstance(past, MemoryCache) and samples < len(prompts) and lengths.min() > past.policy.update_interval:
        start = past.policy.update_interval
        past.share()
        shared = {name: fed[:samples, :start].to(model.device)}
        model(**shared, past_key_values=past, use_cache=True, logits_to_keep=1)
        past.spread(len(prompts) // samples)
    ends, which = torch.unique(lengths - 1 - start, return_inverse=True)
    out = model(
        **{name: fed[:, start:].to(model.device)},
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


def _decode(
    model: PreTrainedModel,
    past: Cache,
    logits: Tensor,
    mask: Tensor,
    lengths: Tensor,
    steps: int,
    forced: Tensor | None,
    stop: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Continues every row for up to `steps` tokens, greedily or along `forced` (rows, steps).

    Returns the logits (rows, done, vocabulary) and the tokens (rows, done).
    """
    all_logits, tokens = [logits], []
    over = torch.zeros(len(logits), dtype=torch.bool)
    for step in range(steps):
        token = all_logits[-1].argmax(-1) if forced is None else forced[:, step]
        tokens.append(token)
        over |= torch.isin(token.cpu(), torch.tensor(stop, dtype=torch.int64))
        if step + 1 == steps or bool(over.all()):
            break
        mask = torch.nn.functional.pad(mask, (0, 1), value=True)
        out = model(
            token[:, None],
            attention_mask=mask.to(model.device),
            position_ids=(lengths + step)[:, None].to(model.device),
            past_key_values=past,
            use_cache=True,
        )
        all_logits.append(out.logits[:, -1].float())
    return torch.stack(all_logits, dim=1), torch.stack(tokens, dim=1)


def _fork(past: Cache) -> Cache:
    """A second continuation of the same cache: layers replace their tensors, never write into them."""
    twin = copy.copy(past)
    twin.layers = [copy.copy(layer) for layer in past.layers]
    return twin
