"""Whether a token stands at an even place: a feature from outside the package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Held


class Even(BaseFeature):
    """One number: 1 at even positions, else 0."""

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, 1)."""
        return (held.view.positions % 2 == 0)[..., None].float()
