"""The backward attention memory (BAM): a token sees itself and newer tokens, which can make it redundant.

The network of arXiv 2410.13166, section 3.2; 4,172 parameters with the paper's numbers. Here is what it is made of;
how it is computed stands in `namm_core.scoring.backward_attention`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.config import NammConfig
from namm_core.scoring.base_scorer import BaseScorer

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Tokens


class BAM(BaseScorer):
    """One head of attention backward in time, `config.hidden` wide, and a bilinear read-out."""

    readout = "w3"

    def layout(self, config: NammConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes inside `theta`, in order; matrices are (in, out), row-major."""
        e, d = config.embedding, config.hidden
        return {"w1": (e, 3 * d), "b1": (3 * d,), "w2": (d, 2 * e), "b2": (2 * e,), "w3": (e,), "b3": (1,)}

    def prepare(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Two bilinear forms of embeddings, (rows, features + 1, features + 1) each."""
        from namm_core.scoring import backward_attention

        return backward_attention.prepare(weights)

    def score(self, prepared: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
        """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), newest token first."""
        from namm_core.scoring import backward_attention

        return backward_attention.score(prepared, embeddings, widths)

    def score_tokens(self, prepared: dict[str, Tensor], tokens: Tokens, widths: list[int]) -> Tensor:
        """Scores (rows, kv_heads, columns) of a layer's tokens, in compiled loops where they serve."""
        from namm_core.scoring import backward_attention

        return backward_attention.score_tokens(prepared, tokens, widths)

    def derivatives(self, weights: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        """(rows, kv_heads, tokens, features), each score's by its token's own embedding; newest token first."""
        from namm_core.scoring import backward_attention

        return backward_attention.derivatives(self.prepare(weights), embeddings)
