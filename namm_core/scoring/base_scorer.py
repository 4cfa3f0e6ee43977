"""For writers of scorers: a base with a default for every member of `Scorer` but `layout` and `score`.

Imports no torch: a scorer's file is imported where `theta` is only counted. Knows no scorer by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.config import NammConfig
    from namm_core.protocols import Tokens


class BaseScorer:
    """Base of scorers; see `namm_core.protocols.Scorer`."""

    readout: str = ""

    def layout(self, config: NammConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parts of `theta`, in order; every scorer must say it."""
        raise NotImplementedError(f"{type(self).__name__} has no method layout(config)")

    def prepare(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights themselves, (rows, *shape) each."""
        return weights

    def score(self, prepared: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
        """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), newest token first."""
        raise NotImplementedError(f"{type(self).__name__} has no method score(prepared, embeddings, widths)")

    def score_tokens(self, prepared: dict[str, Tensor], tokens: Tokens, widths: list[int]) -> Tensor:
        """Scores (rows, kv_heads, columns) of a layer's tokens, by `score`."""
        return self.score(prepared, tokens.embeddings().flip(2), widths).flip(2)

    def derivatives(self, weights: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        """(rows, kv_heads, tokens, features): the derivatives of the sum of all scores by each embedding.

        Right for networks that see one token at a time; one that looks at other tokens must say it itself.
        """
        import torch

        with torch.enable_grad():
            tokens = embeddings.detach().clone().requires_grad_()
            return torch.autograd.grad(self.score(self.prepare(weights), tokens).sum(), tokens)[0]
