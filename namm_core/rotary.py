"""A model's rotary embedding (Su et al., arXiv 2104.09864): taken off queries, and put on again for later positions.

Knows the layout that transformers uses: the rotated dimensions come first, pairs stand half of them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rotary:
    """Frequencies of one layer."""

    frequencies: Tensor
    """(rotated dimensions / 2,), radians a token."""
    scaling: float = 1.0
    """What rotated queries and keys are multiplied by (YaRN's attention factor)."""

    def remove(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (rows, heads, tokens, size) as it was before it was rotated to positions (rows, tokens)."""
        angle = self._angle(positions)[:, None]
        return turn(x, angle.cos() / self.scaling, -angle.sin() / self.scaling)

    def mean(self, first: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (rows, rotated / 2) of the mean rotation to positions first..first + count - 1.

        first: (rows,).
        """
        angle = self._angle(first[:, None] + torch.arange(count, device=first.device))
        return angle.cos().mean(1) * self.scaling, angle.sin().mean(1) * self.scaling

    def _angle(self, positions: Tensor) -> Tensor:
        return positions[..., None].float() * self.frequencies.to(positions.device)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first dimensions of x (..., size) by cos, sin (..., rotated / 2); the others stay."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], dim=-1)


def find(model: nn.Module, layers: int) -> list[Rotary | None]:
    """Each layer's rotary embedding; None for all where the model has none that is known here.

    Where layers of several types rotate differently (Gemma 3), each gets its own type's.
    """
    module = next((m for name, m in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"), None)
    if module is None:
        return [None] * layers
    if hasattr(module, "inv_freq"):
        return [Rotary(module.inv_freq.float(), float(getattr(module, "attention_scaling", 1.0)))] * layers
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None) or []
    found = []
    for kind in kinds[:layers]:
        frequencies = getattr(module, f"{kind}_inv_freq", None)
        scaling = float(getattr(module, f"{kind}_attention_scaling", 1.0))
        found.append(None if frequencies is None else Rotary(frequencies.float(), scaling))
    return found + [None] * (layers - len(found))
