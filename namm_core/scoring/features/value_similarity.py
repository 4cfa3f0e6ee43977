"""How like the other values of its head a token's value is: what it says that the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Held


class ValueSimilarity(BaseFeature):
    """Cosine of the value to the mean direction of its head's values, standardised."""

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, 1)."""
        from namm_core.scoring.key_similarity import similarity
        from namm_core.scoring.standardising import standardised

        return standardised(similarity(held.values, held.view.positions), held)[..., None]
