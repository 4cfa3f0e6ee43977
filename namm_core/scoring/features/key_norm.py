"""The length of a token's key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Held


class KeyNorm(BaseFeature):
    """Logarithm of the key's norm, standardised. L2 ranks by it upside down (arXiv 2406.11430)."""

    rules = {"high_norm": 1.0, "l2": -1.0}

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, 1)."""
        from namm_core.scoring.standardising import standardised

        return standardised(held.keys.float().norm(dim=-1).clamp(min=1e-6).log(), held)[..., None]
