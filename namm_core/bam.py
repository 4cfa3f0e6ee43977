"""The backward attention memory (BAM): the network that turns a token's embedding into a score.

One attention head in which a token sees itself and newer tokens only, so that what came later can make it
redundant (arXiv 2410.13166, section 3.2). Rows may each carry parameters of their own: a population is a batch.

Knows nothing of spectrograms, thresholds or caches.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from namm_core.config import NammConfig
from namm_core.tiles import grouped


def layout(config: NammConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes inside `theta`, in order; matrices are (in, out), row-major."""
    e, d = config.features, config.hidden
    return {"w1": (e, 3 * d), "b1": (3 * d,), "w2": (d, 2 * e), "b2": (2 * e,), "w3": (e,), "b3": (1,)}


def num_parameters(config: NammConfig) -> int:
    """Length of `theta`; 4,172 with the paper's numbers."""
    return sum(math.prod(shape) for shape in layout(config).values())


def unpack(config: NammConfig, theta: Tensor) -> dict[str, Tensor]:
    """Views into theta (rows, N): each (rows, *shape)."""
    parts, at = {}, 0
    for name, shape in layout(config).items():
        size = math.prod(shape)
        parts[name] = theta[:, at : at + size].unflatten(1, shape)
        at += size
    return parts


TOGETHER = 2048
"""Tokens of backward attention in one call on a CPU: heads of unequal length are not padded to the longest."""


def score(weights: dict[str, Tensor], embeddings: Tensor, widths: list[int]) -> Tensor:
    """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), *newest token first*.

    weights: `unpack(...)`, with one row or as many as the embeddings; widths: tokens of each head, rows end to end; the
    rest is padding, whose scores mean nothing. Newest first, backward attention is causal
    attention; padding, being last, is seen by nothing but padding.
    """
    rows, heads, tokens, features = embeddings.shape
    flat = embeddings.flatten(1, 2)
    if weights["w1"].shape[0] == 1 and rows > 1:
        flat = flat.flatten(0, 1)[None]

    def linear(x: Tensor, w: str, b: str) -> Tensor:
        return torch.baddbmm(weights[b][:, None], x, weights[w])

    qkv = linear(flat, "w1", "b1").view(rows, heads, tokens, -1)
    attended = qkv.new_zeros(rows, heads, tokens, qkv.shape[-1] // 3)
    room = TOGETHER if qkv.device.type == "cpu" else rows * heads * tokens
    for some, width in grouped(widths, room):
        q, k, v = qkv.flatten(0, 1)[some, None, :width].chunk(3, dim=-1)
        attended.flatten(0, 1)[some, :width] = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
    out = linear(attended.reshape(flat.shape[0], flat.shape[1], -1), "w2", "b2")
    residual, multiplier = out.chunk(2, dim=-1)
    hidden = torch.addcmul(flat + residual, flat, multiplier)  # e (1 + mult) + res
    scores = torch.baddbmm(weights["b3"][:, None], hidden, weights["w3"][..., None])
    return scores.view(rows, heads, tokens)
