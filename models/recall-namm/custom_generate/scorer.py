# A copy of namm_core/scorer.py of the package namm (Apache-2.0), so that this folder needs no other.
"""The network that scores a token, by the name it has in the configuration, and how `theta` is cut into its weights.

A scorer is a module with `layout` and `score`. The last number of every `theta` is the bias of the score, which shifts
the threshold for all tokens alike. Knows nothing of what a scorer computes.
"""

from __future__ import annotations

import math
from types import ModuleType

from torch import Tensor

from . import bam, mlp
from .config import NammConfig

_SCORERS: dict[str, ModuleType] = {"bam": bam, "mlp": mlp}


def num_parameters(config: NammConfig) -> int:
    """Length of `theta`; with the paper's numbers 4,172 for `bam`, 676 for `mlp`."""
    return sum(math.prod(shape) for shape in _SCORERS[config.scorer].layout(config).values())


def unpack(config: NammConfig, theta: Tensor) -> dict[str, Tensor]:
    """Views into theta (rows, N): each (rows, *shape)."""
    parts, at = {}, 0
    for name, shape in _SCORERS[config.scorer].layout(config).items():
        size = math.prod(shape)
        parts[name] = theta[:, at : at + size].unflatten(1, shape)
        at += size
    return parts


def score(
    config: NammConfig, weights: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None
) -> Tensor:
    """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), *newest token first*.

    weights: `unpack(...)`, with one row or as many as the embeddings; widths: tokens of each head, rows end to end; the
    rest is padding.
    """
    return _SCORERS[config.scorer].score(weights, embeddings, widths)
