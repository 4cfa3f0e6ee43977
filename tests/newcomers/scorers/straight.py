"""A weighted sum of a token's features: a scorer from outside the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.config import NammConfig
from namm_core.scoring.base_scorer import BaseScorer

if TYPE_CHECKING:
    from torch import Tensor


class Straight(BaseScorer):
    """score = e . w + b."""

    def layout(self, config: NammConfig) -> dict[str, tuple[int, ...]]:
        """A weight for each feature, and a bias."""
        return {"w": (config.embedding,), "b": (1,)}

    def score(self, prepared: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
        """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features)."""
        return (embeddings * prepared["w"][:, None, None]).sum(-1) + prepared["b"][:, None]
