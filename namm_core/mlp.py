"""The simpler scorer: a network of one hidden layer, in which a token is scored by its own embedding alone.

A plain reading of the MLP that the paper compares its backward attention with (arXiv 2410.13166): the hidden layer
stands where the attended values stood, and feeds the same residual and multiplier. 2,508 numbers where BAM has 4,172.

Knows nothing of spectrograms, thresholds or caches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from namm_core.config import NammConfig


def layout(config: NammConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes inside `theta`, in order."""
    e, d = config.features, config.hidden
    return {"w1": (e, d), "b1": (d,), "w2": (d, 2 * e), "b2": (2 * e,), "w3": (e,), "b3": (1,)}


def score(weights: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """See `scorer.score`."""
    flat = embeddings.flatten(1, 2)
    hidden = torch.baddbmm(weights["b1"][:, None], *_rows(flat, weights["w1"])).relu_()
    out = torch.baddbmm(weights["b2"][:, None], *_rows(hidden, weights["w2"]))
    residual, multiplier = out.chunk(2, dim=-1)
    moved = torch.addcmul(flat + residual, flat, multiplier)  # e (1 + mult) + res
    scores = torch.baddbmm(weights["b3"][:, None], *_rows(moved, weights["w3"][..., None]))
    return scores.view(embeddings.shape[:3])


def _rows(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return x, w.expand(len(x), -1, -1)
