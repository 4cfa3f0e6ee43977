"""A layer's tokens whose features were computed by tensor operations, as scorers see them. Knows no feature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from namm_core.loops import plain


@dataclass(frozen=True)
class Embedded:
    """All cached tokens of a layer; columns ascend by position, padding (-1) in front. See `protocols.Tokens`."""

    features: Tensor
    """(rows, kv_heads, columns, features) float32"""
    positions: Tensor
    """(rows, kv_heads, columns) int64"""

    @property
    def loops(self) -> bool:
        """Whether `write` serves."""
        return plain(self.features)

    def embeddings(self) -> Tensor:
        """(rows, kv_heads, columns, features)."""
        return self.features

    def write(self, heads: np.ndarray, widths: np.ndarray, out: Tensor) -> np.ndarray:
        """Embeddings of some heads, newest token first, and a one behind each. See `protocols.Tokens.write`."""
        ends = np.zeros((2, len(heads), out.shape[2]), np.float32)
        flat, size = self.features.flatten(0, 1), self.features.shape[-1]
        for i, (head, width) in enumerate(zip(heads.tolist(), widths.tolist(), strict=True)):
            out[i, :width, :size] = flat[head, flat.shape[1] - width :].flip(0)
            out[i, :width, size] = 1.0
            least, most = torch.aminmax(out[i, :width], dim=0)
            ends[0, i], ends[1, i] = least.numpy(), most.numpy()
        return ends
