"""Loops over a tile that would take several tensor operations each: compiled where numba is installed.

Without numba, the same is done by tensor operations, with the same numbers up to rounding. Knows nothing of attention
beyond a tile's layout.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NUMBA = importlib.util.find_spec("numba") is not None


def sum_of_groups(weights: Tensor, scale: Tensor | None, out: Tensor) -> Tensor:
    """Adds up weights (heads, groups, queries, keys) over the groups, into out (queries, heads, keys).

    scale: (heads, groups, queries), what the weights are multiplied by, or None. All are float32 and contiguous.
    """
    if _plain(weights, out):
        scale = weights.new_ones(weights.shape[:3]) if scale is None else scale
        _compiled()[0](weights.numpy(), scale.numpy(), out.numpy())
        return out
    # A sum of slices is several times faster than `sum` over a short inner axis.
    to = out.transpose(0, 1)
    for group in range(weights.shape[1]):
        part = weights[:, group]
        if scale is not None:
            factor = scale[:, group, :, None]
            to = torch.mul(part, factor, out=to) if group == 0 else to.addcmul_(part, factor)
        else:
            to = to.copy_(part) if group == 0 else to.add_(part)
    return out


def settle(weights: Tensor, blank: list[int]) -> Tensor:
    """Hides keys in exponentials of logits, weights (heads, groups, queries, keys): they become zero.

    Hidden are each head's first `blank`, and keys later than their query, the last queries and keys being the same
    tokens. Returns (heads, groups, queries), what the weights must be multiplied by to add up to one.
    """
    heads, groups, queries, keys = weights.shape
    if _plain(weights):
        scale = weights.new_empty(heads, groups, queries)
        _compiled()[2](weights.numpy(), np.array(blank), scale.numpy())
        return scale
    if any(blank):
        column = torch.arange(max(blank), device=weights.device)
        hidden = column < torch.tensor(blank, device=weights.device)[:, None]
        weights[..., : max(blank)].masked_fill_(hidden[:, None, None], 0)
    weights[..., keys - queries :].tril_()
    return weights.sum(-1).reciprocal_()


def add_magnitudes(parts: Tensor, average: Tensor, decay: float) -> None:
    """average = decay * average + the magnitudes of all frames.

    parts: (frames, n, heads * keys), cosines of frequencies 0 to n / 2, then sines of 1 to n / 2 - 1, overwritten;
    average: (heads, n / 2 + 1, keys), keys one after the other. Both are float32, `parts` contiguous.
    """
    frames, n, size = parts.shape
    heads, top, keys = average.shape[0], n // 2, average.shape[2]
    if _plain(parts, average):
        head, frequency, _ = average.stride()
        flat = average.as_strided(((heads - 1) * head + top * frequency + keys,), (1,))  # rows are known to be dense
        _compiled()[1](parts.view(frames, n, heads, keys).numpy(), flat.numpy(), head, frequency, decay)
        return
    power = parts[:, : top + 1].square_()
    power[:, 1:top].addcmul_(parts[:, top + 1 :], parts[:, top + 1 :])
    power.sqrt_()
    total = power[0] if frames == 1 else power.sum(0)
    average.mul_(decay).add_(total.view(-1, heads, keys).transpose(0, 1))


def _plain(*tensors: Tensor) -> bool:
    """Whether compiled loops may work on these."""
    return NUMBA and all(t.device.type == "cpu" and t.dtype == torch.float32 and not t.requires_grad for t in tensors)


@functools.cache
def _compiled() -> tuple[Callable, Callable, Callable]:
    """The loops of `sum_of_groups`, `add_magnitudes` and `settle`; a second or so at their first use in a process."""
    njit = importlib.import_module("numba").njit  # by name: a copy that travels with a memory does without

    # Additions and multiplications may be fused and reordered; not a number and infinities stay what they are.
    options = {"fastmath": {"contract", "reassoc", "nsz"}, "nogil": True}

    @njit("void(float32[:,:,:,::1], float32[:,:,::1], float32[:,:,::1])", **options)
    def sums(weights, scale, out):
        heads, groups, queries, keys = weights.shape
        for head in range(heads):
            for query in range(queries):
                to = out[query, head]
                first, a = weights[head, 0, query], scale[head, 0, query]
                if groups == 1:
                    for key in range(keys):
                        to[key] = first[key] * a
                else:
                    second, b = weights[head, 1, query], scale[head, 1, query]
                    for key in range(keys):
                        to[key] = first[key] * a + second[key] * b
                for group in range(2, groups):
                    other, c = weights[head, group, query], scale[head, group, query]
                    for key in range(keys):
                        to[key] += other[key] * c

    @njit("void(float32[:,:,:,::1], float32[::1], int64, int64, float32)", **options)
    def magnitudes(parts, average, of_head, of_frequency, decay):
        frames, n, heads, keys = parts.shape
        top = n // 2
        for frequency in range(top + 1):
            for head in range(heads):
                start = head * of_head + frequency * of_frequency
                to = average[start : start + keys]
                for key in range(keys):
                    to[key] *= decay
                for frame in range(frames):
                    cosine = parts[frame, frequency, head]
                    if 0 < frequency < top:
                        sine = parts[frame, top + frequency, head]
                        for key in range(keys):
                            to[key] += math.sqrt(cosine[key] * cosine[key] + sine[key] * sine[key])
                    else:
                        for key in range(keys):
                            to[key] += abs(cosine[key])

    @njit("void(float32[:,:,:,::1], int64[::1], float32[:,:,::1])", **options)
    def settled(weights, blank, scale):
        heads, groups, queries, keys = weights.shape
        for head in range(heads):
            first = blank[head]
            for group in range(groups):
                for query in range(queries):
                    row = weights[head, group, query]
                    row[:first] = 0
                    row[keys - queries + query + 1 :] = 0
                    total = np.float32(0)
                    for key in range(keys):
                        total += row[key]
                    scale[head, group, query] = 1 / total

    return sums, magnitudes, settled
