"""The length of a token's value: how much it can say where it is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Held


class ValueNorm(BaseFeature):
    """Logarithm of the value's norm, standardised."""

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, 1)."""
        from namm_core.scoring.standardising import standardised

        return standardised(held.values.float().norm(dim=-1).clamp(min=1e-6).log(), held)[..., None]
