"""Batched prefill for evaluation: what a model answers, and how sure it was of the reference.

Rows are independent (candidate, sample) pairs, padded on the right. Knows nothing of tasks or text; what follows the
prompts is left to `namm_core.decoding`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from namm_core import decoding
from namm_core.cache import MemoryCache
from namm_core.support import cache_argument

AT_ONCE = 4096
"""Tokens of all rows in one call of a model on a CPU, so that what its layers compute stays near the processor."""


@dataclass
class Answer:
    """What one row gave."""

    tokens: list[int]
    """Greedy tokens, up to the stop token, which is left out."""
    logprob: float
    """Mean log-probability of the reference answer's tokens, in nats; with several answers in the reference, the
    logarithm of the mean of their probabilities (each the exponential of its own mean)."""
    kept: list[float]
    """Per layer: entries held / tokens seen, right after the last prompt token (mean over KV heads)."""


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    prompts: list[Tensor],
    references: list[Tensor],
    cache: MemoryCache | None,
    max_new_tokens: int | list[int],
    stop: tuple[int, ...] = (),
    scored: list[tuple[tuple[int, int], ...]] | None = None,
) -> list[Answer]:
    """Reads all prompts, scores the references by teacher forcing, and decodes greedily.

    prompts: per row (tokens,) int64, or their embeddings (tokens, size); references: per row (answer tokens,) int64 as
    they follow the prompt; cache: a fresh `MemoryCache`, or None for the stock full cache; max_new_tokens: greedy
    tokens, the same for all rows or each row's own; stop: token ids that end an answer; scored: per row, where in the
    reference its answers stand (first, behind the last), the rest being fed between them; none, or empty, is all of it.
    """
    rows = len(prompts)
    limits = [max_new_tokens] * rows if isinstance(max_new_tokens, int) else max_new_tokens
    past: Cache = DynamicCache(config=model.config) if cache is None else cache
    first, mask = prefill(model, prompts, past, goes_on=model.device.type == "cpu")
    kept = [[1.0] * len(past.layers)] * rows if cache is None else cache.kept_fractions()
    logits = decoding.along(model, past, first, mask, references, limits)
    wanted = torch.nn.utils.rnn.pad_sequence(references, batch_first=True).to(logits.device)
    sure = logits[:, : wanted.shape[1]].log_softmax(-1).gather(-1, wanted[..., None])[..., 0].double().cpu()
    greedy = decoding.greedy(model, past, logits, mask, references, limits, stop)
    spans = [(scored[i] if scored else ()) or ((0, len(reference)),) for i, reference in enumerate(references)]
    return [Answer(greedy[i], _sureness(sure[i], spans[i]), kept[i]) for i in range(rows)]


def _sureness(sure: Tensor, spans: tuple[tuple[int, int], ...]) -> float:
    """Of one row's log-probabilities (places,), as `Answer.logprob` says."""
    each = torch.stack([sure[first:last].mean() for first, last in spans])
    return float(each[0] if len(each) == 1 else each.logsumexp(0) - math.log(len(each)))


def prefill(
    model: PreTrainedModel, prompts: list[Tensor], past: Cache, goes_on: bool = False, at_once: int = AT_ONCE
) -> tuple[Tensor, Tensor]:
    """Reads all prompts, ids or embeddings, rows padded on the right, into the fresh cache `past`.

    What precedes the first update is the same for all candidates of a sample, and computed once. Long prompts are read
    in several calls, which changes nothing. goes_on: whether `past` is used up at once, so that it stays padded, which
    is faster and takes more memory. at_once: on a CPU, the most tokens of all rows in one call, in whole intervals.

    Returns the logits (rows, vocabulary) of each row's last token and the mask (rows, columns) of real tokens.
    """
    lengths = torch.tensor([len(p) for p in prompts])
    fed = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    name = "inputs_embeds" if fed.is_floating_point() else "input_ids"
    mask = torch.arange(fed.shape[1]) < lengths[:, None]
    start, given = 0, {cache_argument(model): past}
    samples = _samples(prompts)
    if isinstance(past, MemoryCache) and samples < len(prompts) and lengths.min() > past.policy.update_interval:
        start = past.policy.update_interval
        past.share()
        shared = {name: fed[:samples, :start].to(model.device)}
        model(**shared, **given, use_cache=True, logits_to_keep=1)
        past.spread(len(prompts) // samples)
    ends, which = torch.unique(lengths - 1, return_inverse=True)
    logits, step = [], fed.shape[1]
    if isinstance(past, MemoryCache) and model.device.type == "cpu":
        interval = past.policy.update_interval
        step = interval * max(1, at_once // (interval * len(prompts)))
    for begin in range(start, fed.shape[1], step):
        stop = min(begin + step, fed.shape[1])
        last = ends[(ends >= begin) & (ends < stop)] - begin
        if isinstance(past, MemoryCache):
            past.keep_open(goes_on or stop < fed.shape[1])
        out = model(
            **{name: fed[:, begin:stop].to(model.device)},
            attention_mask=mask[:, :stop].to(model.device),
            **given,
            use_cache=True,
            # On the CPU: it indexes the last layer's output, which may live on another device.
            logits_to_keep=last if len(last) else torch.zeros(1, dtype=torch.int64),  # no row ends here
        )
        if len(last):
            logits.append(out.logits)
    return torch.cat(logits, dim=1)[torch.arange(len(prompts)), which].float(), mask


def _samples(prompts: list[Tensor]) -> int:
    """How many prompts there are before they all repeat, in the same order, for the next candidate."""
    rows = len(prompts)
    for samples in range(1, rows):
        if rows % samples == 0 and all(torch.equal(prompts[i], prompts[i - samples]) for i in range(samples, rows)):
            return samples
    return rows
