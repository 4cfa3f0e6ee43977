"""The age of a token, in sines and cosines: how many tokens were fed since (arXiv 2410.13166; docs/memory.md 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.config import NammConfig
    from namm_core.protocols import Held


class Age(BaseFeature):
    """Sines, then cosines, of the age at `age_dim` / 2 frequencies."""

    def width(self, config: NammConfig) -> int:
        """`age_dim`."""
        return config.age_dim

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, age_dim)."""
        return held.ages[held.age]
