"""The longest of each head's vectors, which bounds what its attention logits can be.

In a compiled loop where numba is installed, elsewhere by a tensor operation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from namm_core.loops import compiled, plain, spanned


def longest_rows(x: Tensor) -> Tensor:
    """(heads,) length of the longest of each head's vectors; x: (heads, tokens, size), numbers of a vector adjacent."""
    if not plain(x):
        return torch.linalg.vector_norm(x, dim=-1).amax(1)
    found = x.new_empty(len(x))
    _measuring()(spanned(x), *x.stride()[:2], x.shape[1], x.shape[2], found.numpy())
    return found


@functools.cache
def _measuring() -> Callable:
    """The loop of `longest_rows`."""

    @compiled("void(float32[::1], int64, int64, int64, int64, float32[::1])")
    def measured(x, of_head, of_token, tokens, size, found):
        for head in range(len(found)):
            largest = np.float32(0)
            for token in range(tokens):
                start, square = head * of_head + token * of_token, np.float32(0)
                for k in range(start, start + size):
                    square += x[k] * x[k]
                largest = square if square > largest else largest
            found[head] = math.sqrt(largest)

    return measured
