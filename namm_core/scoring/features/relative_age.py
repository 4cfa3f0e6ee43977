"""Where in the text a token stands: its age over the age of the first one, which means the same at every length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.protocols import Held


class RelativeAge(BaseFeature):
    """From -1 for the newest token to 1 for the oldest."""

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, 1)."""
        oldest = held.view.newest.clamp(min=1)[:, None, None]
        return (2.0 * held.age / oldest - 1.0)[..., None]
