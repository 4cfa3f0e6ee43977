"""The networks that score a token, by the name that a configuration gives them; where each finds its part of theta.

A scorer is a module with `layout(config)`, the names and shapes inside theta, and `score(weights, embeddings)`; the
last number of theta is the score's bias, so that lowering it raises the threshold of every token alike.
"""

from __future__ import annotations

import math
from types import ModuleType

from torch import Tensor

from namm_core import bam, mlp
from namm_core.config import NammConfig

SCORERS: dict[str, ModuleType] = {"bam": bam, "mlp": mlp}


def num_parameters(config: NammConfig) -> int:
    """Length of `theta`; 4,172 with the paper's numbers."""
    return sum(math.prod(shape) for shape in SCORERS[config.scorer].layout(config).values())


def unpack(config: NammConfig, theta: Tensor) -> dict[str, Tensor]:
    """Views into theta (rows, N): each (rows, *shape); matrices are (in, out), row-major."""
    parts, at = {}, 0
    for name, shape in SCORERS[config.scorer].layout(config).items():
        size = math.prod(shape)
        parts[name] = theta[:, at : at + size].unflatten(1, shape)
        at += size
    return parts


def score(config: NammConfig, weights: dict[str, Tensor], embeddings: Tensor) -> Tensor:
    """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), *newest token first*.

    weights: `unpack(...)`, with one row or as many as the embeddings.
    """
    return SCORERS[config.scorer].score(weights, embeddings)
