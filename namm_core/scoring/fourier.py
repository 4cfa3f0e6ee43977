"""The windowed Fourier transform of a frame, as tables in double precision: docs/memory.md 3, and nothing else.

The transform itself stands in four places, since each runs where the others cannot or are slow. All four take the
window and the angles from here:

| where | for |
|---|---|
| `Spectrogram._magnitudes` in `spectrogram` | a block's whole attention, on any device: the plain form |
| `_Watch` in `spectrogram` | tiles on any device: a matrix product with the whole basis |
| `spectrogram_loops` | tiles on a CPU with numba: a fast transform, written out for its length |
| `attention.triton_kernels.spectrogram_kernel` | tiles that are never written out: products of tensor cores |

tests/namm_core/scoring/test_spectrogram.py holds the second and third against the first,
tests/namm_core/attention/test_kernel.py the fourth; the first is held against recordings and an oracle in NumPy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def window(n_fft: int) -> Tensor:
    """(n_fft,) float64, the periodic Hann window: 0.5 - 0.5 cos(2 pi m / n_fft)."""
    return torch.hann_window(n_fft, dtype=torch.float64)


def angles(n_fft: int) -> Tensor:
    """(n_fft / 2 + 1, n_fft) float64: 2 pi f m / n_fft, of frequency f and place m in a frame."""
    m = torch.arange(n_fft, dtype=torch.float64)
    return 2 * math.pi * torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * m / n_fft
