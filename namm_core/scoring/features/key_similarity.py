"""How like the other keys of its head a token's key is: what KeyDiff ranks by (arXiv 2504.15364)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Held


class KeySimilarity(BaseFeature):
    """Cosine of the key to the mean direction of its head's keys, standardised."""

    rules = {"keydiff": -1.0}

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, 1)."""
        from namm_core.scoring.key_similarity import similarity
        from namm_core.scoring.standardising import standardised

        return standardised(similarity(held.keys, held.view.positions), held)[..., None]
