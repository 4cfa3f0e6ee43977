"""How a token's own features move its own score: d score_i / d e_i, exactly, for all tokens at once.

A score also depends on the features of newer tokens, which backward attention looks at. Here they are held fixed, so
that one backward pass gives every token its own derivative. Knows nothing of models or tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from namm_core.namm import Namm
from namm_core.policies.base import State, View
from namm_core.scoring import scorer

BLOCK = 256
"""Tokens whose derivatives are taken at once: bounds the memory for long prompts."""


def own_derivatives(namm: Namm, state: State, view: View) -> Tensor:
    """(rows, kv_heads, keys, features) derivative of each token's score by its own embedding; columns as in `view`.

    Units: score per unit of the embedding (spectrogram features in standard deviations, ages as sines and cosines);
    padding gets numbers without meaning. Raises ValueError for a population.
    """
    if namm.rows != 1:
        raise ValueError(f"sensitivity is that of one NAMM, not of {namm.rows}")
    if namm.config.scorer == "mlp":  # looks at one token at a time: the derivatives of the sum are those of each
        with torch.enable_grad():
            tokens = namm.embeddings(state, view).detach().clone().requires_grad_()
            scores = scorer.score(namm.config, namm.weights_at(view), tokens)
            return torch.autograd.grad(scores.sum(), tokens)[0]
    weights = {name: w[0] for name, w in namm.weights_at(view).items()}
    context = namm.embeddings(state, view).detach().flip(2).clone()  # newest first, as the scorer has it
    parts = [_block(weights, context, start) for start in range(0, context.shape[2], BLOCK)]
    return torch.cat(parts, dim=2).flip(2)


def _block(weights: dict[str, Tensor], context: Tensor, start: int) -> Tensor:
    size = weights["w1"].shape[1] // 3
    with torch.enable_grad():
        tokens = context[:, :, start : start + BLOCK].clone().requires_grad_()
        q, k, v = (tokens @ weights["w1"] + weights["b1"]).split(size, dim=-1)
        newer = context[:, :, : start + tokens.shape[2]]
        _, keys, values = (newer @ weights["w1"] + weights["b1"]).split(size, dim=-1)
        at = torch.arange(start, start + tokens.shape[2], device=tokens.device)[:, None]
        hidden = torch.arange(newer.shape[2], device=tokens.device) >= at  # strictly newer ones alone are context
        among = (q @ keys.transpose(-1, -2)).masked_fill(hidden, -torch.inf)
        logits = torch.cat([among, (q * k).sum(-1, keepdim=True)], dim=-1) / size**0.5
        shares = logits.softmax(-1)
        attended = shares[..., :-1] @ values + shares[..., -1:] * v
        residual, multiplier = (attended @ weights["w2"] + weights["b2"]).chunk(2, dim=-1)
        scores = (tokens * (1 + multiplier) + residual) @ weights["w3"] + weights["b3"]  # docs/memory.md 8
        return torch.autograd.grad(scores.sum(), tokens)[0]
