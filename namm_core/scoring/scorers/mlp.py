"""The multi-layer perceptron scorer: a token's embedding into a score, without a look at other tokens.

What the backward attention memory is compared with (arXiv 2410.13166). The form is that of the scorer `MLPScoring` of
the paper's public implementation, at two layers and with biases (read, not run): a residual hidden layer as wide as the
embedding, then one output. 676 parameters with the paper's 25 features; `NammConfig.hidden` plays no part.

Knows nothing of spectrograms, thresholds or caches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.config import NammConfig
from namm_core.scoring.base_scorer import BaseScorer

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Tokens


class MLP(BaseScorer):
    """h = e + relu(e W1 + b1), score = h . w2 + b2."""

    readout = "w2"

    def layout(self, config: NammConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes inside `theta`, in order; matrices are (in, out), row-major."""
        e = config.embedding
        return {"w1": (e, e), "b1": (e,), "w2": (e,), "b2": (1,)}

    def score(self, prepared: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
        """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), in any order of tokens.

        prepared: the weights, with one row or as many as the embeddings; widths plays no part.
        """
        flat = embeddings.flatten(1, 2)
        if prepared["w1"].shape[0] == 1 and len(embeddings) > 1:
            flat = flat.flatten(0, 1)[None]
        hidden = flat + prepared["b1"][:, None].baddbmm(flat, prepared["w1"]).relu()
        scores = prepared["b2"][:, None].baddbmm(hidden, prepared["w2"][..., None])
        return scores.view(embeddings.shape[:3])

    def score_tokens(self, prepared: dict[str, Tensor], tokens: Tokens, widths: list[int]) -> Tensor:
        """Scores (rows, kv_heads, columns) of a layer's tokens, columns as there."""
        return self.score(prepared, tokens.embeddings(), widths)
