"""Mean and variance of the spectrogram features, collected once with the full cache and then frozen.

Knows nothing of how features come about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class FeatureStatistics:
    """One mean and one population variance per spectrogram feature, pooled over rows, heads, tokens and layers."""

    mean: Tensor
    """(frequencies,) float32"""
    var: Tensor
    """(frequencies,) float32"""
    count: float
    """Tokens pooled."""

    def __post_init__(self) -> None:
        self.mean, self.var = _vector(self.mean), _vector(self.var)
        count = torch.as_tensor(self.count, dtype=torch.float64)
        self.count = float(count.flatten()[0])
        if self.mean.shape != self.var.shape or self.mean.ndim != 1:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.var.shape)}"
            raise ValueError(f"mean and var must be vectors of one length, not {shapes}")

    @classmethod
    def of(cls, averages: Tensor) -> FeatureStatistics:
        """Statistics of one group of tokens; averages: (..., frequencies). On the CPU: layers may live apart."""
        flat = averages.reshape(-1, averages.shape[-1]).double()
        return cls(flat.mean(0).cpu(), flat.var(0, unbiased=False).cpu(), flat.shape[0])

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of both groups together (docs/memory.md 5; the pairwise update of Chan et al., 1979)."""
        count = self.count + other.count
        w = self.count / count
        mean_a, mean_b = self.mean.double(), other.mean.double()
        mean = w * mean_a + (1 - w) * mean_b
        var = w * self.var.double() + (1 - w) * other.var.double() + (mean_b - mean_a) ** 2 * w * (1 - w)
        return FeatureStatistics(mean, var, count)

    @property
    def deviation(self) -> Tensor:
        """(frequencies,) float32, max(sqrt(var), 1e-7)."""
        return self.var.sqrt().clamp(min=1e-7)

    def normalise(self, averages: Tensor) -> Tensor:
        """(averages - mean) / deviation; averages: (..., frequencies)."""
        return (averages - self.mean.to(averages.device)) / self.deviation.to(averages.device)


def _vector(values: Tensor | np.ndarray | list[float]) -> Tensor:
    """A float32 tensor of its own memory."""
    return values.clone().float() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float32))
