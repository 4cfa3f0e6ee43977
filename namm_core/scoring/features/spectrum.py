"""The spectrogram of the attention that a token received, normalised by frozen statistics (arXiv 2410.13166)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.config import NammConfig
    from namm_core.protocols import Held


class Spectrum(BaseFeature):
    """Moving average of the magnitudes at all frequencies; docs/memory.md 3 to 5."""

    needs_attention = True

    def width(self, config: NammConfig) -> int:
        """`n_fft` / 2 + 1."""
        return config.frequencies

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, frequencies)."""
        magnitudes = held.average.transpose(-1, -2)
        return magnitudes if held.statistics is None else held.statistics.normalise(magnitudes)
