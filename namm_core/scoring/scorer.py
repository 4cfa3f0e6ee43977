"""The scorer that a configuration names, and how `theta` is cut into its weights.

Imports no torch, so that `theta` can be counted where there is none. Knows nothing of what a scorer computes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from namm_core import plugins
from namm_core.config import SCORERS, NammConfig

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Scorer


def find(name: str) -> Scorer:
    """The scorer in `namm_core/scoring/scorers/<name>.py`. Raises ValueError, one line, for an unknown name."""
    return cast("Scorer", plugins.find_class(SCORERS, name, "scorer")())


def num_parameters(config: NammConfig) -> int:
    """Length of `theta`; with the paper's numbers 4,172 for `bam`, 676 for `mlp`."""
    return sum(math.prod(shape) for shape in find(config.scorer).layout(config).values())


def unpack(config: NammConfig, theta: Tensor) -> dict[str, Tensor]:
    """Views into theta (rows, N), the scorer's weights by name: each (rows, *shape)."""
    parts, at = {}, 0
    for name, shape in find(config.scorer).layout(config).items():
        size = math.prod(shape)
        parts[name] = theta[:, at : at + size].unflatten(1, shape)
        at += size
    return parts


def score(
    config: NammConfig, weights: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None
) -> Tensor:
    """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), newest token first.

    weights: `unpack(...)`, with one row or as many as the embeddings; widths: as in `Scorer.score`.
    """
    network = find(config.scorer)
    return network.score(network.prepare(weights), embeddings, widths)
