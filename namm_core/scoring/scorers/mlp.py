"""The multi-layer perceptron scorer: a token's embedding into a score, without a look at other tokens.

What the backward attention memory is compared with (arXiv 2410.13166). The form is that of the scorer `MLPScoring` of
the paper's public implementation, at two layers and with biases (read, not run): a residual hidden layer as wide as the
embedding, then one output. 676 parameters with the paper's 25 features; `NammConfig.hidden` plays no part.

Knows nothing of spectrograms, thresholds or caches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from namm_core.config import NammConfig
from namm_core.scoring.embedding import Tokens


def layout(config: NammConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes inside `theta`, in order; matrices are (in, out), row-major."""
    e = config.features
    return {"w1": (e, e), "b1": (e,), "w2": (e,), "b2": (1,)}


def prepare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `score` needs of weights as in `layout`."""
    return weights


def score(weights: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
    """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), in any order of tokens.

    weights: as `layout`, with one row or as many as the embeddings; widths: of no use here.
    """
    flat = embeddings.flatten(1, 2)
    if weights["w1"].shape[0] == 1 and len(embeddings) > 1:
        flat = flat.flatten(0, 1)[None]
    hidden = flat + torch.baddbmm(weights["b1"][:, None], flat, weights["w1"]).relu()  # h = e + relu(e W1 + b1)
    scores = torch.baddbmm(weights["b2"][:, None], hidden, weights["w2"][..., None])  # h . w2 + b2
    return scores.view(embeddings.shape[:3])


def score_tokens(weights: dict[str, Tensor], tokens: Tokens, widths: list[int]) -> Tensor:
    """Scores (rows, kv_heads, columns) of a layer's tokens, columns as there."""
    return score(weights, tokens.embeddings(), widths)
