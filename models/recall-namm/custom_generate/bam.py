# A copy of namm_core/bam.py of the package namm (Apache-2.0), so that this folder needs no other.
"""The backward attention memory (BAM): the network that turns a token's embedding into a score.

One attention head in which a token sees itself and newer tokens only, so that what came later can make it
redundant (arXiv 2410.13166, section 3.2). Rows may each carry parameters of their own: a population is a batch.

Knows nothing of spectrograms, thresholds or caches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import NammConfig
from .tiles import QUERIES, grouped

TOGETHER = 2048
"""Tokens of backward attention in one call on a CPU: heads of unequal length are not padded to the longest."""
LARGEST = 60.0
"""Logits whose exponentials, added up over any number of tokens, float32 can hold."""


def layout(config: NammConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes inside `theta`, in order; matrices are (in, out), row-major."""
    e, d = config.features, config.hidden
    return {"w1": (e, 3 * d), "b1": (3 * d,), "w2": (d, 2 * e), "b2": (2 * e,), "w3": (e,), "b3": (1,)}


def score(weights: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
    """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), *newest token first*.

    weights: as `layout`, with one row or as many as the embeddings; widths: tokens of each head, rows end to end (None:
    all); the rest is padding, whose scores mean nothing. Newest first, backward attention is causal attention; padding,
    being last, is seen by nothing but padding.
    """
    rows, heads, tokens, features = embeddings.shape
    flat = embeddings.flatten(1, 2)
    if weights["w1"].shape[0] == 1 and rows > 1:
        flat = flat.flatten(0, 1)[None]
    d = weights["w2"].shape[1]
    wq, wv = weights["w1"].split([2 * d, d], dim=2)
    bq, bv = weights["b1"].split([2 * d, d], dim=1)
    qk = torch.baddbmm(bq[:, None], flat, wq).view(rows * heads, tokens, 2 * d)
    seen = _attend(qk, embeddings.flatten(0, 1), widths or [tokens] * (rows * heads))
    # Attention's weights add up to one: (att (e Wv + bv)) W2 + b2 = (att e) Wv W2 + bv W2 + b2, without e's values.
    w, b = torch.matmul(wv, weights["w2"]), torch.baddbmm(weights["b2"][:, None], bv[:, None], weights["w2"])
    out = torch.baddbmm(b, seen.view_as(flat), w)
    residual, multiplier = out.chunk(2, dim=-1)
    hidden = torch.addcmul(flat + residual, flat, multiplier)  # e (1 + mult) + res
    scores = torch.baddbmm(weights["b3"][:, None], hidden, weights["w3"][..., None])
    return scores.view(rows, heads, tokens)


def _attend(qk: Tensor, embeddings: Tensor, widths: list[int]) -> Tensor:
    """Causal attention's mean of the embeddings (heads, tokens, features), by queries and keys (heads, tokens, 2 d)."""
    heads, tokens, features = embeddings.shape
    d, cpu = qk.shape[2] // 2, qk.device.type == "cpu"
    # A column of ones adds up the weights in the same product; to whole vectors of the processor.
    values = F.pad(embeddings, (0, 1), value=1.0)
    values = F.pad(values, (0, -(features + 1) % 16))
    out = torch.zeros_like(values)
    largest = []
    if cpu and not qk.requires_grad:  # no product of a head's query and key exceeds that of the longest of both
        longest = qk.unflatten(2, (2, d)).square().sum(-1).amax(1).sqrt()
        largest = (longest[:, 0] * longest[:, 1] * d**-0.5).tolist()
    for some, width in grouped(widths, TOGETHER if cpu else heads * tokens):
        q, k = qk[some, :width].split(d, dim=2)
        v = values[some, :width]
        # Where no weight can overflow, the largest logit need not be found first.
        if largest and max(largest[some]) < LARGEST:
            _exponentials(q * d**-0.5, k.transpose(1, 2), v, out[some, :width])
        else:
            out[some, :width] = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
    # Padding between the heads' own tokens and the widest one's has weights that add up to zero.
    return out[..., :features] / out[..., features, None].clamp(min=torch.finfo(out.dtype).tiny)


def _exponentials(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Causal attention that is not yet divided by the sum of its weights, in tiles that stay in the cache."""
    heads, width, _ = q.shape
    tile = q.new_empty(heads * QUERIES * width)
    past = torch.ones(QUERIES, QUERIES).tril_()
    for start in range(0, width, QUERIES):
        stop = min(start + QUERIES, width)
        weights = tile[: heads * (stop - start) * stop].view(heads, stop - start, stop)
        torch.bmm(q[:, start:stop], k[:, :, :stop], out=weights)
        weights.exp_()[..., start:] *= past[: stop - start, : stop - start]  # exp(-inf) takes twenty times as long
        out[:, start:stop] = torch.bmm(weights, v[:, :stop])
