"""The oracle in a model: a Llama whose every layer sees, by a mask, only what its memory has not forgotten.

Nothing is cached and nothing is cut: the whole text runs anew for each update, with the forgotten entries
masked out for later queries, and the oracle decides from the attention of that run. Serves one row; knows
nothing of the code under test.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface

from tests.namm_core.reference import Reference, Statistics

NAME = "reference_visible"


def attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Softmax over what `module.visible` (KV heads, queries, keys) shows; sets `module.probabilities`."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    tokens = query.shape[2]
    visible = module.visible[:, :tokens, :tokens].repeat_interleave(groups, dim=0)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~visible, -torch.inf)
    probabilities = scores.softmax(-1)
    module.probabilities = probabilities[0].unflatten(0, (-1, groups)).mean(1)  # (KV heads, queries, keys)
    return (probabilities @ value).transpose(1, 2), None


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def tiny_llama(seed: int) -> LlamaForCausalLM:
    """A random Llama with sharp attention: 2 layers, 4 query heads on 2 KV heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@dataclass
class Outcome:
    """One row's text under a memory; decisions nearer than `margin` to a tie did not occur."""

    logits: np.ndarray  # (tokens, vocabulary)
    kept: list[list[list[int]]]  # [layer][KV head] positions held after the last token
    statistics: Statistics  # of the averages, pooled over updates, layers and heads
    margin: float


@torch.no_grad()
def run(model: LlamaForCausalLM, tokens: torch.Tensor, interval: int, make_memory: Callable[[], Reference]) -> Outcome:
    """The whole text `tokens` (T,) under one memory a layer, updated each `interval` tokens."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    layers = [layer.self_attn for layer in model.model.layers]
    heads, total = model.config.num_key_value_heads, len(tokens)
    memories: list[Reference] = [make_memory() for _ in layers]
    kept = [[np.empty(0, dtype=int)] * heads for _ in layers]
    statistics, margin = None, np.inf
    for layer in layers:
        layer.visible = torch.ones(heads, total, total, dtype=torch.bool).tril()
    for end in range(interval, total + 1, interval):
        model(tokens[None, :end], use_cache=False)
        new = np.arange(end - interval, end)
        for index, (layer, memory) in enumerate(zip(layers, memories, strict=True)):
            columns = [np.concatenate([old, new]) for old in kept[index]]
            probabilities = layer.probabilities.double().numpy()
            blocks = [(probabilities[h][np.ix_(new, columns[h])], columns[h]) for h in range(heads)]
            steps, nearest = memory.update(blocks)
            margin = min(margin, nearest)
            kept[index] = [columns[h][step.keep] for h, step in enumerate(steps)]
            for h in range(heads):
                forgotten = np.setdiff1d(columns[h], kept[index][h])
                layer.visible[h, end:, forgotten] = False
            group = Statistics.of(np.concatenate([step.average for step in steps]))
            statistics = group if statistics is None else statistics.merge(group)
    logits = model(tokens[None], use_cache=False).logits[0].numpy()
    model.set_attn_implementation(before)
    tail = range(total - total % interval, total)
    held = [[[*head.tolist(), *tail] for head in layer] for layer in kept]
    return Outcome(logits, held, statistics, margin)
