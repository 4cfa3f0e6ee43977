"""The linear scorer: a weighted sum of a token's features. Near theta = 0 every other scorer is this one.

Small enough for a search that learns how its numbers hang together (full covariance). Knows nothing of features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.config import NammConfig
from namm_core.scoring.base_scorer import BaseScorer

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Tokens


class Linear(BaseScorer):
    """score = e . w + b."""

    readout = "w"

    def layout(self, config: NammConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes inside `theta`, in order."""
        return {"w": (config.embedding,), "b": (1,)}

    def score(self, prepared: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
        """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), newest token first."""
        return (embeddings * prepared["w"][:, None, None]).sum(-1) + prepared["b"][:, None]

    def score_tokens(self, prepared: dict[str, Tensor], tokens: Tokens, widths: list[int]) -> Tensor:
        """Scores (rows, kv_heads, columns) of a layer's tokens; the order of tokens plays no part."""
        return self.score(prepared, tokens.embeddings(), widths)
