"""Backward attention's loops over tokens, compiled; only where numba is installed.

Knows nothing of embeddings beyond their layout: numbers, a one behind them, zeros up to `size`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from torch import Tensor

from namm_core.loops import compiled

LOWEST = -80.0
"""What a logit may lie below the largest: its weight is nothing beside that one's, and yet no denormal number."""


def centre(prepared: dict[str, Tensor], rows: np.ndarray, ends: np.ndarray, both: Tensor) -> None:
    """Both matrices that a head's embeddings are multiplied by, side by side, into both (heads, n, 2 * size).

    rows: (heads,) int64, each head's row of `prepared`; ends: (2, heads, size), smallest and largest of each number of
    a head's embeddings. The logits of each query are shifted, by its number that meets the one, so that their bounds
    lie evenly about zero: bounds by the smallest box around the embeddings.
    """
    _loops()[0](prepared["logits"].numpy(), prepared["own"].numpy(), rows, ends, both.numpy())


def within(products: Tensor, ends: np.ndarray, widths: np.ndarray, bound: float) -> bool:
    """Whether no logit of these heads reaches `bound` in magnitude.

    products: (heads, tokens, 2 * size), embeddings @ both; widths: (heads,) int64, tokens of each.
    """
    return _loops()[1](products.numpy(), ends, widths, bound)


def lower(logits: Tensor, by: Tensor) -> None:
    """Lowers the logits (heads, queries, keys) of each query by a number, (heads, queries), but not below LOWEST."""
    _loops()[3](logits.numpy(), by.numpy(), np.float32(LOWEST))


def finish(products: Tensor, seen: Tensor, one: int, heads: np.ndarray, widths: np.ndarray, out: Tensor) -> None:
    """Scores, newest last, to the right in out (heads of the layer, columns).

    products: as for `within`; seen: (heads, tokens, size), weighted sums of the embeddings; one: which of an
    embedding's numbers is one; heads: (heads,) int64, where they are in `out`; widths: (heads,) int64.
    """
    _loops()[2](products.numpy(), seen.numpy(), one, heads, widths, out.numpy())


@functools.cache
def _loops() -> tuple[Callable, Callable, Callable, Callable]:
    """The loops of `centre`, `within`, `finish` and `lower`."""

    @compiled("void(float32[:,:,:], float32[:,:,:], int64[::1], float32[:,:,::1], float32[:,:,::1])")
    def centre(logits, own, rows, ends, both):
        n, size = logits.shape[1], both.shape[2] // 2
        for head in range(len(rows)):
            row = rows[head]
            for i in range(n):
                shift = np.float32(0)
                for j in range(n):
                    both[head, i, j] = logits[row, i, j]
                    both[head, i, size + j] = own[row, i, j]
                    shift += logits[row, i, j] * (ends[0, head, j] + ends[1, head, j]) / 2
                both[head, i, n - 1] -= shift

    @compiled("boolean(float32[:,:,::1], float32[:,:,::1], int64[::1], float32)")
    def within(products, ends, widths, bound):
        for head in range(len(widths)):
            least, most = ends[0, head], ends[1, head]
            for token in range(widths[head]):
                query, largest = products[head, token], np.float32(0)
                for j in range(len(least)):
                    largest += abs(query[j]) * (most[j] - least[j])
                if not largest < 2 * bound:  # not a number is beyond every bound
                    return False
        return True

    @compiled("void(float32[:,:,::1], float32[:,:,::1], int64, int64[::1], int64[::1], float32[:,::1])")
    def finish(products, seen, one, heads, widths, out):
        size, columns = seen.shape[2], out.shape[1]
        for i in range(len(heads)):
            to = out[heads[i]]
            for token in range(widths[i]):
                own, other, total = products[i, token, size:], seen[i, token], np.float32(0)
                for j in range(size):
                    total += own[j] * other[j]
                to[columns - 1 - token] = total / other[one]

    @compiled("void(float32[:,:,::1], float32[:,::1], float32)")
    def lower(logits, by, lowest):
        heads, queries, keys = logits.shape
        for head in range(heads):
            for query in range(queries):
                row, shift = logits[head, query], by[head, query]
                for key in range(keys):
                    x = row[key] - shift
                    row[key] = lowest if x < lowest else x

    return centre, within, finish, lower
