"""Small random models of the architectures, and a reader that goes through a text one token at a time.

The reader has no cache. For each token the whole text so far runs anew, and an explicit mask per layer and KV head
hides from every query what had been forgotten when that query came. What is forgotten is decided here in NumPy. It
knows nothing of the code under test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.masking_utils import AttentionMaskInterface

from tests.namm_core.reference import Reference

NAME = "reference_reader"
VOCABULARY = 97
WINDOW = 24
"""Tokens that a sliding layer sees, the newest included; much less than the prompts."""

# --- models

_SHARP = {"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    **_SHARP,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_ALTERNATE = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_GROUPED),
    "qwen2": Qwen2Config(**_GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=8),
    "mistral": MistralConfig(**_GROUPED, sliding_window=WINDOW),
    "gemma2": Gemma2Config(**_GROUPED, **_ALTERNATE, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=3.0),
    "gemma3": Gemma3TextConfig(**_GROUPED, **_ALTERNATE, head_dim=8, query_pre_attn_scalar=8),
    "phi3": Phi3Config(**_GROUPED),
    "gpt_neox": GPTNeoXConfig(**_SIZES, rotary_pct=0.5),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, **_SHARP),
}
SLIDING = {"qwen2": [1], "mistral": [0, 1], "gemma2": [0], "gemma3": [0]}
"""Layers that see `WINDOW` tokens."""


def small_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A random model with sharp attention: 2 layers, 4 query heads, and 2 KV heads where the architecture has them."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture]).eval()


def text(length: int, seed: int) -> Tensor:
    """(length,) token ids; 0, which is padding, never occurs."""
    return torch.tensor(np.random.default_rng(seed).integers(1, VOCABULARY, length))


# --- what decides


class Decider(Protocol):
    """Decides for one layer; called at each update."""

    def decide(self, seen: list[np.ndarray], columns: list[np.ndarray], new: int) -> tuple[list[np.ndarray], float]:
        """Which columns stay, (K,) bool per KV head, and by what margin.

        seen: per head (queries, queries) attention of all queries so far, mean over the query group; columns: per
        head (K,) positions still held, ascending; new: queries since the last update.
        """
        ...


@dataclass
class ByNamm:
    """The oracle of a NAMM (`reference.py`)."""

    memory: Reference

    def decide(self, seen, columns, new):
        for held, in_sight in zip(self.memory.history, columns, strict=False):
            for position in set(held) - set(in_sight.tolist()):  # slid out of the window
                del held[position]
        steps, margin = self.memory.update([(s[-new:, c], c) for s, c in zip(seen, columns, strict=True)])
        return [step.keep for step in steps], margin


@dataclass
class ByRecency:
    """StreamingLLM: the first tokens and the newest, `budget` in all."""

    budget: int
    sinks: int = 4

    def decide(self, seen, columns, new):
        newest = len(seen[0]) - 1
        return [(c < self.sinks) | (c > newest - (self.budget - self.sinks)) for c in columns], np.inf


@dataclass
class ByReceived:
    """H2O: the newest half of the budget, and those that received the most attention from all queries."""

    budget: int

    def decide(self, seen, columns, new):
        newest, keeps, margin = len(seen[0]) - 1, [], np.inf
        for attention, held in zip(seen, columns, strict=True):
            received = attention[:, held].sum(0)
            received[held > newest - self.budget // 2] = np.inf
            order = np.argsort(-received, kind="stable")
            keeps.append(np.isin(np.arange(len(held)), order[: self.budget]))
            if len(held) > self.budget:
                gap = received[order[self.budget - 1]] - received[order[self.budget]]
                margin = min(margin, gap)
        return keeps, margin


# --- the reader


@dataclass
class _Layer:
    decider: Decider
    kept: list[np.ndarray] = field(default_factory=list)  # per KV head, positions
    visible: Tensor | None = None  # (KV heads, longest, longest) bool, without causality and window
    attention: list[np.ndarray] = field(default_factory=list)  # per KV head, (queries, queries)
    window: int | None = None


def _attention(module, query, key, value, attention_mask, scaling, softcap=None, sliding_window=None, **_):
    """Softmax over what the layer's memory had not forgotten when each query came, by an explicit mask."""
    layer = module.reader_layer
    layer.window = sliding_window
    heads, tokens = key.shape[1], key.shape[2]
    groups = query.shape[1] // heads
    if layer.visible is None:
        layer.kept = [np.empty(0, dtype=int)] * heads
        layer.visible = torch.ones(heads, 256, 256, dtype=torch.bool)
    at, of = torch.arange(tokens)[:, None], torch.arange(tokens)
    visible = layer.visible[:, :tokens, :tokens] & (of <= at)
    if sliding_window is not None:
        visible = visible & (at - of < sliding_window)
    out, layer.attention = [], []
    for head in range(heads):
        weights = 0
        for h in range(head * groups, (head + 1) * groups):
            scores = query[0, h] @ key[0, head].T * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            probabilities = scores.masked_fill(~visible[head], -torch.inf).softmax(-1)
            out.append(probabilities @ value[0, head])
            weights = weights + probabilities.double().numpy() / groups
        layer.attention.append(weights)
    return torch.stack(out, dim=1)[None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


class Reader:
    """Reads one text under one memory a layer, token by token; use it as a context."""

    def __init__(self, model: PreTrainedModel, interval: int, decider: Callable[[], Decider]) -> None:
        self.model, self.interval = model, interval
        self.tokens: list[int] = []
        self.margin = np.inf
        modules = [m for m in model.modules() if hasattr(m, "layer_idx") and "Attention" in type(m).__name__]
        self._modules = sorted(modules, key=lambda m: m.layer_idx)
        self.layers = [_Layer(decider()) for _ in self._modules]

    def __enter__(self) -> Reader:
        self._before = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        for module, layer in zip(self._modules, self.layers, strict=True):
            module.reader_layer = layer
        return self

    def __exit__(self, *_) -> None:
        self.model.set_attn_implementation(self._before)
        for module in self._modules:
            del module.reader_layer

    @torch.no_grad()
    def read(self, token: int) -> Tensor:
        """Feeds one token; returns (vocabulary,) the logits after it, from before any eviction that it causes."""
        self.tokens.append(int(token))
        logits = self.model(torch.tensor([self.tokens]), use_cache=False).logits[0, -1]
        if len(self.tokens) % self.interval == 0:
            for layer in self.layers:
                self._update(layer)
        return logits

    def read_all(self, tokens: Tensor) -> Tensor:
        """(tokens, vocabulary) logits of a whole text (tokens,)."""
        return torch.stack([self.read(token) for token in tokens])

    def _update(self, layer: _Layer) -> None:
        end = len(self.tokens)
        held = [np.concatenate([old, np.arange(end - self.interval, end)]) for old in layer.kept]
        columns = held if layer.window is None else [h[h > end - 1 - layer.window] for h in held]
        keeps, margin = layer.decider.decide(layer.attention, columns, self.interval)
        self.margin = min(self.margin, margin)
        layer.kept = [c[k] for c, k in zip(columns, keeps, strict=True)]
        for head, before in enumerate(held):
            layer.visible[head, end:, np.setdiff1d(before, layer.kept[head])] = False

    @property
    def kept(self) -> list[list[list[int]]]:
        """[layer][KV head] positions held after the last token, the tail since the last update included."""
        tail = range(len(self.tokens) - len(self.tokens) % self.interval, len(self.tokens))
        return [[[*head.tolist(), *tail] for head in layer.kept] for layer in self.layers]
