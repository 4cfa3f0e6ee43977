"""Backward attention: the network of the BAM scorer (`namm_core.scoring.scorers.bam`), computed.

One attention head in which a token sees itself and newer tokens only, so that what came later can make it
redundant (arXiv 2410.13166, section 3.2; docs/memory.md 8). Rows may each have parameters of their own: a population
is a batch.

The network is one pair of bilinear forms, which `prepare` makes of the weights; three functions read them:
- `score`, tensor operations, for any device and for gradients: the plain form;
- `score_tokens`, the same some heads at a time, in the loops of `bam_loops` where numba is installed;
- `derivatives`, which separates a token's own embedding from those that it looks at.
In tests/namm_core, scoring/test_embedding.py holds the second against the first, scoring/test_scorers.py the third;
test_golden.py and test_properties.py hold the scores against recordings and an oracle.

Knows nothing of spectrograms, thresholds or caches.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from namm_core.loops import plain
from namm_core.protocols import Tokens
from namm_core.scoring import bam_loops
from namm_core.tiling import QUERIES, grouped

TOGETHER = 2048
"""Tokens of backward attention in one call on a CPU: heads of unequal length are not padded to the longest."""
BLOCK = 256
"""Tokens whose derivatives are taken at once: bounds the memory for long prompts."""
LARGEST = 60.0
"""Logits whose exponentials, added up over any number of tokens, float32 can hold."""
TINY = torch.finfo(torch.float32).tiny


def prepare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What scores need of the weights (`BAM.layout`): bilinear forms of two embeddings, a one behind each.

    Logits are (e' Wq) . (e Wk), so that the keys are the embeddings: `logits` (rows, n, n), n = features + 1.
    The rest is bilinear in the token's own embedding e and attention's mean s of the others: with
    u = (s Wv) W2 + b2 = [res, mult], the score is w3 . (e + e mult + res) + b3: `own` (rows, n, n). Attention's weights
    add up to one, so that the biases are seen like embeddings.
    """
    w2, w3 = weights["w2"], weights["w3"][:, None]
    d, features = w2.shape[1], w3.shape[2]
    wq, wk, wv = torch.cat([weights["w1"], weights["b1"][:, None]], dim=1).split(d, dim=2)  # (rows, n, d)
    u = torch.matmul(wv, w2) + F.pad(weights["b2"][:, None], (0, 0, features, 0))
    residual, multiplier = u.split(features, dim=2)  # (rows, n, features)
    own = F.pad((multiplier * w3).transpose(1, 2), (0, 0, 0, 1))
    own[:, features] += (residual * w3).sum(2)
    own[:, :features, features] += weights["w3"]
    own[:, features, features] += weights["b3"][:, 0]
    return {"logits": torch.matmul(wq, wk.transpose(1, 2)) * d**-0.5, "own": own}


def score(prepared: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
    """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), *newest token first*.

    prepared: by `prepare`, with one row or as many as the embeddings; widths: tokens of each head, rows end to end
    (None: all); the rest is padding, whose scores mean nothing. Newest first, backward attention is causal attention;
    padding, being last, is seen by nothing but padding.
    """
    rows, heads, tokens, features = embeddings.shape
    n = features + 1
    # The one also adds up attention's weights in the product with the values; zeros fill up the processor's vectors.
    e = F.pad(F.pad(embeddings, (0, 1), value=1.0), (0, -n % 16))
    flat = e.flatten(1, 2)[..., :n]
    if len(prepared["own"]) == 1 and rows > 1:
        flat = flat.flatten(0, 1)[None]
    q = torch.matmul(flat, prepared["logits"]).view(rows * heads, tokens, n)
    seen = _attend(q, e.flatten(0, 1), widths or [tokens] * (rows * heads)).view(rows, heads, tokens, n)
    return (torch.matmul(flat, prepared["own"]).view_as(seen) * seen).sum(-1) / seen[..., -1].clamp(min=TINY)


def derivatives(prepared: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """Derivative of each score by its token's own embedding, the newer ones that it looks at held fixed.

    prepared: by `prepare`, with one row; embeddings and result: (rows, kv_heads, tokens, features), newest token first.
    """
    context = embeddings.detach().contiguous()
    parts = [_derivatives(prepared, context, start) for start in range(0, context.shape[2], BLOCK)]
    return torch.cat(parts, dim=2)


def _derivatives(prepared: dict[str, Tensor], context: Tensor, start: int) -> Tensor:
    """Those of at most BLOCK tokens from `start` on."""
    with torch.enable_grad():
        tokens = context[:, :, start : start + BLOCK].clone().requires_grad_()
        e = F.pad(tokens, (0, 1), value=1.0)
        others = F.pad(context[:, :, : start + tokens.shape[2]], (0, 1), value=1.0)
        q = e @ prepared["logits"][0]
        at = torch.arange(start, start + tokens.shape[2], device=tokens.device)[:, None]
        hidden = torch.arange(others.shape[2], device=tokens.device) >= at  # strictly newer ones alone are context
        among = (q @ others.transpose(-1, -2)).masked_fill(hidden, -torch.inf)
        shares = torch.cat([among, (q * e).sum(-1, keepdim=True)], dim=-1).softmax(-1)
        seen = shares[..., :-1] @ others + shares[..., -1:] * e
        scores = ((e @ prepared["own"][0]) * seen).sum(-1)
        return torch.autograd.grad(scores.sum(), tokens)[0]


def score_tokens(prepared: dict[str, Tensor], tokens: Tokens, widths: list[int]) -> Tensor:
    """Scores (rows, kv_heads, columns) of a layer's tokens, columns as there; padding's mean nothing.

    prepared: by `prepare`, with one row or as many as the tokens; widths: tokens of each head, rows end to end. As by
    `score`, in compiled loops where they serve, some heads at a time.
    """
    own = prepared["own"]
    if not (tokens.loops and plain(own)):
        return score(prepared, tokens.embeddings().flip(2), widths).flip(2)
    rows, heads, columns = tokens.positions.shape
    n = own.shape[1]
    size = n + -n % 16
    out = own.new_zeros(rows * heads, columns)
    descending = sorted(range(rows * heads), key=lambda head: -widths[head])  # heads of one call are alike
    for some, width in grouped([widths[head] for head in descending], TOGETHER):
        at = np.array(descending[some])
        row, counts = at // heads if len(own) > 1 else np.zeros_like(at), np.array([widths[head] for head in at])
        e, both = own.new_zeros(len(at), width, size), own.new_zeros(len(at), n, 2 * size)
        ends = tokens.write(at, counts, e)
        bam_loops.centre(prepared, row, ends, both)
        products = torch.bmm(e[..., :n], both)
        bounded = bam_loops.within(products, ends, counts, LARGEST)
        seen = _exponentials(products[..., :n], e, torch.empty_like(e), counts.tolist(), bounded)
        bam_loops.finish(products, seen, n - 1, at, counts, out)
    return out.view(rows, heads, columns)


def _attend(q: Tensor, e: Tensor, widths: list[int]) -> Tensor:
    """Causal attention's weighted sum (heads, tokens, n) of the embeddings e (heads, tokens, n and zeros).

    q: (heads, tokens, n). The last of an embedding's n numbers is one: the last of the sum is that of weights.
    Padding between the heads' own tokens and the widest one's has weights that add up to zero.
    """
    heads, tokens, n = q.shape
    out = torch.zeros_like(e)
    tiled, largest = q.device.type == "cpu" and not q.requires_grad, []
    if tiled:
        largest = _centre(q, e)
    for some, width in grouped(widths, TOGETHER if q.device.type == "cpu" else heads * tokens):
        attend = _exponentials if tiled and max(largest[some]) < LARGEST else _softmax
        attend(q[some, :width], e[some, :width], out[some, :width], [width] * (some.stop - some.start))
    return out[..., :n]


def _centre(q: Tensor, e: Tensor) -> list[float]:
    """Shifts each query's logits, by its number that meets the one, so that their bounds lie evenly about zero.

    Bounds are those of the smallest box around a head's embeddings. Returns the largest bound of each head.
    """
    low, high = e.amin(1)[:, : q.shape[2]], e.amax(1)[:, : q.shape[2]]
    middle, reach = (low + high) / 2, (high - low) / 2  # of the one: 1 and 0
    q[..., -1] -= torch.bmm(q, middle[..., None])[..., 0]
    return torch.bmm(q.abs(), reach[..., None]).amax((1, 2)).tolist()


def _exponentials(q: Tensor, e: Tensor, out: Tensor, widths: list[int], bounded: bool = True) -> Tensor:
    """Causal attention that is not yet divided by the sum of its weights, in tiles that stay in the cache.

    bounded: whether no weight can overflow, so that the largest logit need not be found first; otherwise it is, and
    loops are compiled. widths: tokens of each head, descending; padding in `out` is not written. Returns out.
    """
    heads, width, n = q.shape
    keys, to = e[..., :n].transpose(1, 2), out
    tile = q.new_empty(heads * QUERIES * width)
    past, _ = _past()
    for start in range(0, width, QUERIES):
        stop = min(start + QUERIES, width)
        if widths[heads - 1] <= start:
            heads = sum(tokens > start for tokens in widths)
            q, e, keys, to = q[:heads], e[:heads], keys[:heads], to[:heads]
        weights = tile[: heads * (stop - start) * stop].view(heads, stop - start, stop)
        torch.bmm(q[:, start:stop], keys[..., :stop], out=weights)
        if not bounded:
            weights[..., start:].sub_(_past()[1][: stop - start, : stop - start])  # what is later is not the largest
            bam_loops.lower(weights, weights.amax(-1))
        weights.exp_()
        weights[..., start:].mul_(past[: stop - start, : stop - start])  # exp(-inf) takes twenty times as long
        torch.bmm(weights, e[:, :stop], out=to[:, start:stop])
    return out


@functools.cache
def _past() -> tuple[Tensor, Tensor]:
    """(QUERIES, QUERIES): one where a key is not later than its query; no less than any logit where it is."""
    past = torch.ones(QUERIES, QUERIES).tril_()
    return past, 1e30 * (1 - past)


def _softmax(q: Tensor, e: Tensor, out: Tensor, widths: list[int]) -> Tensor:
    """As `_exponentials`, for logits of any size and without loops; divided by the sum of the weights."""
    queries = F.pad(q, (0, e.shape[2] - q.shape[2]))[:, None]
    seen = F.scaled_dot_product_attention(queries, e[:, None], e[:, None], is_causal=True, scale=1.0)
    return out.copy_(seen[:, 0])
