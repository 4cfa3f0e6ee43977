"""Paired comparisons: the mean difference between two policies on the same samples, and how sure it is.

Knows numbers; knows nothing of policies, tasks, tables or files.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit


def paired_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences (samples,) and the bounds of Student's t interval: (mean, low, high).

    Bounds are NaN for fewer than 2 differences, and so is the mean of none. The quantile is
    `scipy.special.stdtrit`'s, with samples - 1 degrees of freedom.
    """
    differences = np.asarray(differences, dtype=np.float64)
    count = differences.size
    if count == 0:
        return math.nan, math.nan, math.nan
    mean = float(differences.mean())
    if count < 2:
        return mean, math.nan, math.nan
    quantile = float(stdtrit(count - 1, 0.5 + level / 2))
    half = quantile * float(differences.std(ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def plain(value: float) -> float | None:
    """The number as strict JSON has it: None where it does not exist (NaN) or is infinite."""
    return float(value) if math.isfinite(value) else None
