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


DEPTH = "depth"
"""The part of theta that shares a budget among layers or heads (`namm_core.allocation`)."""


def find(name: str) -> Scorer:
    """The scorer in `namm_core/scoring/scorers/<name>.py`. Raises ValueError, one line, for an unknown name."""
    return cast("Scorer", plugins.find_class(SCORERS, name, "scorer")())


def layout(config: NammConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parts of `theta`, in order: how a budget is shared, then the scorer's own."""
    depths = (config.depths, config.heads) if config.heads else (config.depths,)
    shared: dict[str, tuple[int, ...]] = {DEPTH: depths} if config.depths else {}
    return shared | find(config.scorer).layout(config)


def num_parameters(config: NammConfig) -> int:
    """Length of `theta`; with the paper's numbers 4,172 for `bam`, 676 for `mlp`."""
    return sum(math.prod(shape) for shape in layout(config).values())


def unpack(config: NammConfig, theta: Tensor) -> dict[str, Tensor]:
    """Views into theta (rows, N), its parts by name: each (rows, *shape)."""
    parts, at = {}, 0
    for name, shape in layout(config).items():
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
