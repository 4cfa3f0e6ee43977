"""A layer's rotary embedding, found in the model: to undo the rotation of queries, and to rotate by any positions.

It knows the layout that pairs dimension i with i + n/2 of the first n (Llama, Qwen, Mistral, Gemma, Phi, GPT-NeoX,
...), with one frequency table for the model or one for each kind of layer. For all others (interleaved pairs, several
position axes, rotation of the last dimensions, no rotation) it finds `None`. Knows nothing of caches or policies.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rotary:
    """The rotation of one layer's queries and keys."""

    module: nn.Module
    """The model's own module, read anew each time: some (dynamic NTK, LongRoPE) change with the length of the text."""
    prefix: str = ""
    """What the names in it begin with: the kind of layer, where each kind has its own table."""

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., n/2) of positions (...), float32, times the embedding's own scale."""
        frequencies = getattr(self.module, f"{self.prefix}inv_freq").to(positions.device, torch.float32)
        angle = positions[..., None].float() * frequencies
        return angle.cos() * self._scale, angle.sin() * self._scale

    def unrotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (..., size) as it was before it was rotated by positions (...)."""
        cos, sin = self.angles(positions)
        return turn(x, cos / self._scale**2, -sin / self._scale**2)

    @property
    def _scale(self) -> float:
        return getattr(self.module, f"{self.prefix}attention_scaling", 1.0)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., size) with its first n dimensions rotated by angles (..., n/2)."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def find(model: PreTrainedModel, layer: int) -> Rotary | None:
    """The rotary embedding of the text decoder's layer `layer`; None where there is none that is known."""
    module = getattr(model.get_decoder(), "rotary_emb", None)
    if module is None or not _pairs_halves(module) or hasattr(module, "mrope_section"):
        return None
    config = model.config.get_text_config(decoder=True)
    rotated = getattr(config, "no_rope_layers", None)  # 1 for layers that rotate
    if getattr(config, "qk_rope_head_dim", None) or (rotated and not rotated[layer]):
        return None
    kinds = getattr(config, "layer_types", None)
    for prefix in ("", f"{kinds[layer]}_" if kinds else ""):
        if hasattr(module, f"{prefix}inv_freq"):
            return Rotary(module, prefix)
    return None


def _pairs_halves(module: nn.Module) -> bool:
    """Whether the file that defines the embedding pairs dimension i with i + n/2: it says so in `rotate_half`."""
    rotate_half = getattr(sys.modules[type(module).__module__], "rotate_half", None)
    if rotate_half is None:
        return False
    return rotate_half(torch.arange(4.0)).tolist() == [-2.0, -3.0, 0.0, 1.0]
