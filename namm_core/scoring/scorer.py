"""The network that scores a token, by the name it has in the configuration, and how `theta` is cut into its weights.

A scorer is a module with `layout`, `prepare`, `score` and `score_tokens`. The last number of every `theta` is the bias
of the score, which shifts the threshold for all tokens alike. Knows nothing of what a scorer computes.
"""

from __future__ import annotations

import math
from types import ModuleType

from torch import Tensor

from namm_core.config import NammConfig
from namm_core.scoring.embedding import Tokens
from namm_core.scoring.scorers import bam, mlp

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


def prepare(config: NammConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `score_tokens` needs of `unpack(...)`, computed once for many scores."""
    return _SCORERS[config.scorer].prepare(weights)


def score(
    config: NammConfig, weights: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None
) -> Tensor:
    """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), *newest token first*.

    weights: `unpack(...)`, with one row or as many as the embeddings; widths: tokens of each head, rows end to end; the
    rest is padding.
    """
    module = _SCORERS[config.scorer]
    return module.score(module.prepare(weights), embeddings, widths)


def score_tokens(config: NammConfig, prepared: dict[str, Tensor], tokens: Tokens, widths: list[int]) -> Tensor:
    """Scores (rows, kv_heads, columns) of a layer's tokens, columns as there, by what `prepare` made of the weights."""
    return _SCORERS[config.scorer].score_tokens(prepared, tokens, widths)
