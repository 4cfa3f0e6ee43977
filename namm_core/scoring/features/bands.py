"""The same spectrogram in three bands, on a scale of its own: how much attention, how steady, how abrupt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.config import NammConfig
    from namm_core.protocols import Held

LEAST = 1e-6
"""Added to magnitudes before their logarithm is taken."""


class Bands(BaseFeature):
    """Logarithms of the mean magnitude at frequency 0, in the lower quarter of the others, and above; standardised."""

    needs_attention = True

    def width(self, config: NammConfig) -> int:
        """Three bands."""
        return 3

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, 3)."""
        import torch

        from namm_core.scoring.standardising import standardised

        low = 1 + held.config.frequencies // 4
        parts = held.average[:, :, :1], held.average[:, :, 1:low], held.average[:, :, low:]
        return torch.stack([standardised((part.float().mean(2) + LEAST).log(), held) for part in parts], dim=-1)
