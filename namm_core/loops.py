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

import torch
from torch import Tensor

NUMBA = importlib.util.find_spec("numba") is not None


def sum_of_groups(weights: Tensor, scale: Tensor | None, out: Tensor) -> Tensor:
    """Adds up weights (heads, groups, queries, keys) over the groups, into out (queries, heads, keys).

    scale: (heads, groups, queries), what the weights are multiplied by, or None. All are float32 and contiguous.
    """
    if plain(weights, out):
        scale = weights.new_ones(weights.shape[:3]) if scale is None else scale
        _loops()[0](weights.numpy(), scale.numpy(), out.numpy())
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


def add_magnitudes(parts: Tensor, average: Tensor, decay: float) -> None:
    """average = decay * average + the magnitudes of all frames.

    parts: (frames, n, heads * keys), cosines of frequencies 0 to n / 2, then sines of 1 to n / 2 - 1, overwritten;
    average: (n / 2 + 1, heads, at least as many keys). Both are float32 and contiguous.
    """
    frames, n, size = parts.shape
    top, heads = n // 2, average.shape[1]
    keys = size // heads
    if plain(parts, average):
        _loops()[1](parts.view(frames, n, heads, keys).numpy(), average.numpy(), decay)
        return
    power = parts[:, : top + 1].square_()
    power[:, 1:top].addcmul_(parts[:, top + 1 :], parts[:, top + 1 :])
    power.sqrt_()
    total = power[0] if frames == 1 else power.sum(0)
    decayed = average[..., :keys].mul_(decay)
    decayed += total.view(-1, heads, keys)


def plain(*tensors: Tensor) -> bool:
    """Whether compiled loops may work on these."""
    return NUMBA and all(t.device.type == "cpu" and t.dtype == torch.float32 and not t.requires_grad for t in tensors)


def compiled(signature: str) -> Callable[[Callable], Callable]:
    """Decorator of a loop over arrays, compiled at once for this signature; only where numba is installed."""
    njit = importlib.import_module("numba").njit  # by name: a copy that travels with a memory does without
    # Additions and multiplications may be fused and reordered; not a number and infinities stay what they are.
    return njit(signature, fastmath={"contract", "reassoc", "nsz"}, nogil=True)


@functools.cache
def _loops() -> tuple[Callable, Callable]:
    """The loops of `sum_of_groups` and `add_magnitudes`; a second or so at their first use in a process."""

    @compiled("void(float32[:,:,:,::1], float32[:,:,::1], float32[:,:,::1])")
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

    @compiled("void(float32[:,:,:,::1], float32[:,:,::1], float32)")
    def magnitudes(parts, average, decay):
        frames, n, heads, keys = parts.shape
        top = n // 2
        for frequency in range(top + 1):
            for head in range(heads):
                to = average[frequency, head]
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

    return sums, magnitudes
