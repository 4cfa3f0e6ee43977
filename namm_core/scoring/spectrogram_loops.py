"""The moving average of a tile's spectrogram, advanced in one compiled pass; only where numba is installed.

For some keys at a time, frame after frame: the mean over the query group, the window, a real fast Fourier transform
written out for its length, magnitudes, the moving average. No intermediate result leaves the first-level cache. One of
the four forms of the transform in `namm_core.scoring.fourier`. Knows nothing of tiles beyond their layout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from namm_core.config import NammConfig
from namm_core.loops import compiled, named, plain, spanned
from namm_core.scoring import fourier

KEYS = 64
"""Keys at a time: a frame of them, and their averages, lie in the first-level cache."""
u = np.uint64
"""In the loops, marks indices that are known not to be negative, so that the compiler does not check them."""
HOP = 16
"""Queries in a hop; each compiled loop has its own value."""
LENGTHS = (8, 16, 32, 64)
"""Lengths of frames that are written out; others go through matrix products (`namm_core.scoring.spectrogram`)."""


def serves(n_fft: int, average: Tensor) -> bool:
    """Whether `advance` can work on such frames and averages."""
    return n_fft in LENGTHS and plain(average)


def advance(
    config: NammConfig,
    weights: Tensor,
    scale: Tensor | None,
    average: Tensor,
    carried: Tensor,
    pending: Tensor,
    phase: int,
) -> int:
    """Advances averages by a tile's queries.

    weights: (heads, groups, queries, keys), contiguous; scale: (heads, groups, queries), what they are multiplied by,
    or None; average: (heads, frequencies, keys); carried: (heads, hop, keys), the last whole hop; pending: (heads, hop,
    keys), of which the first `phase` queries are filled. These three are overwritten; their keys lie one after the
    other. All are float32. Returns how many of `pending` are filled now.
    """
    heads, groups, queries, _ = weights.shape
    decay = config.ema**config.hop
    if scale is None:
        scale = weights.new_ones(heads, groups, queries)
    held = [piece for tensor in (average, carried, pending) for piece in (spanned(tensor), *tensor.stride()[:2])]
    _loop(config.n_fft)(weights.numpy(), scale.numpy(), *held, phase, np.float32(decay))
    return (phase + queries) % config.hop


@functools.cache
def _loop(n: int) -> Callable:
    """The loop of `advance` for frames of n queries."""
    return compiled()(named(_tile, f"tile_{n}", _copied=compiled()(_copied), _magnitudes=_written(n), HOP=n // 2))


def _copied(source, start, to, place, count):
    for k in range(u(count)):
        to[u(place) + k] = source[u(start) + k]


def _magnitudes(first, second, total, decay):
    """total = decay * total + magnitudes of one frame of KEYS keys; compiled, `_written` stands for it.

    first, second: the frame's halves (n / 2 * KEYS,); total: ((n / 2 + 1) * KEYS,), all float32.
    """
    frame = np.concatenate([first, second]).reshape(-1, KEYS)
    seen = np.abs(np.fft.rfft(frame * fourier.window(len(frame)).numpy()[:, None], axis=0))
    total[:] = decay * total + seen.ravel()


def _tile(weights, scale, average, head_a, row_a, carried, head_c, row_c, pending, head_p, row_p, phase, decay):
    heads, groups, queries, keys = weights.shape
    flat, share = weights.reshape(weights.size), np.float32(1) / np.float32(groups)
    frames = (phase + queries) // HOP
    first, second = np.zeros(HOP * KEYS, np.float32), np.zeros(HOP * KEYS, np.float32)
    total = np.empty((HOP + 1) * KEYS, np.float32)
    faded = np.float32(1)
    for _ in range(frames):
        faded *= decay
    fresh = 1 - decay
    for head in range(heads):
        for start in range(0, keys, KEYS):
            width = min(KEYS, keys - start)
            for m in range(HOP):
                _copied(carried, head * head_c + m * row_c + start, first, m * KEYS, width)
            total[:] = 0
            for at in range(phase + queries):
                m = at % HOP
                if at < phase:
                    _copied(pending, head * head_p + m * row_p + start, second, m * KEYS, width)
                else:
                    query, to = at - phase, u(m * KEYS)
                    row = u((head * groups * queries + query) * keys + start)
                    a = scale[head, 0, query] * share
                    if groups == 1:
                        for k in range(u(width)):
                            second[to + k] = flat[row + k] * a
                    else:
                        other, b = row + u(queries * keys), scale[head, 1, query] * share
                        for k in range(u(width)):
                            second[to + k] = flat[row + k] * a + flat[other + k] * b
                    for group in range(2, groups):
                        other, b = row + u(group * queries * keys), scale[head, group, query] * share
                        for k in range(u(width)):
                            second[to + k] += flat[other + k] * b
                if m == HOP - 1:
                    _magnitudes(first, second, total, decay)
                    first[:] = second
            if frames:
                for m in range(HOP + 1):
                    to, added = u(head * head_a + m * row_a + start), u(m * KEYS)
                    for k in range(u(width)):
                        average[to + k] = average[to + k] * faded + total[added + k] * fresh
                for m in range(HOP):
                    _copied(first, m * KEYS, carried, head * head_c + m * row_c + start, width)
            for m in range((phase + queries) % HOP):
                _copied(second, m * KEYS, pending, head * head_p + m * row_p + start, width)


@functools.cache
def _written(n: int) -> Callable:
    """`_magnitudes` for frames of n queries, written out and compiled."""
    code = _Code()
    constants: dict[str, Any] = {"__name__": __name__, "sqrt": math.sqrt}
    window, x = fourier.window(n).numpy(), []
    for m in range(n):
        half, place = ("first", m) if m < n // 2 else ("second", m - n // 2)
        x.append(code.real(f"{half}[{place * KEYS} + k] * {code.constant(window[m])}"))
    code.transform(x, 1)
    body = "\n        ".join(code.lines)
    source = f"def magnitudes(first, second, total, decay):\n    for k in range({KEYS}):\n        {body}\n"
    constants |= code.constants
    exec(compile(source, __file__, "exec"), constants)  # of this file: so its compiled form can be kept
    return compiled()(named(constants["magnitudes"], f"magnitudes_{n}"))


class _Code:
    """Straight-line code of a real transform: names of values, and the lines that compute them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, np.float32] = {}

    def constant(self, value: float) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.float32(value)  # a plain number would be in double precision
        return name

    def real(self, expression: str) -> str:
        name = f"x{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        return name

    def transform(self, x: list[str], step: int) -> None:
        """Frequencies 0, step, 2 step, ... of real values x: even ones by half of the length, odd ones by a quarter.

        X[4k + 1] is the complex transform of (d[m] - i d[m + n/4]) exp(-2 pi i m / n) with d[m] = x[m] - x[m + n/2],
        and X[4k + 3] is the conjugate of one of these.
        """
        n, half, quarter = len(x), len(x) // 2, len(x) // 4
        sums = [self.real(f"{a} + {b}") for a, b in zip(x[:half], x[half:], strict=True)]
        differences = [self.real(f"{a} - {b}") for a, b in zip(x[:half], x[half:], strict=True)]
        if n == 2:
            self._add(0, f"abs({sums[0]})")
            self._add(step, f"abs({differences[0]})")
            return
        z = [self._turned(differences[m], f"-{differences[m + quarter]}", m / n) for m in range(quarter)]
        for k, (re, im) in enumerate(self._complex(z)):
            frequency = min(4 * k + 1, n - 4 * k - 1)
            self._add(frequency * step, f"sqrt({re} * {re} + {im} * {im})")
        self.transform(sums, 2 * step)

    def _complex(self, z: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The complex transform of z, decimated in frequency."""
        if len(z) == 1:
            return z
        half = len(z) // 2
        pairs = list(zip(z[:half], z[half:], strict=True))
        sums = [(self.real(f"{a[0]} + {b[0]}"), self.real(f"{a[1]} + {b[1]}")) for a, b in pairs]
        differences = [
            self._turned(self.real(f"{a[0]} - {b[0]}"), self.real(f"{a[1]} - {b[1]}"), m / len(z))
            for m, (a, b) in enumerate(pairs)
        ]
        found = [("", "")] * len(z)
        found[0::2], found[1::2] = self._complex(sums), self._complex(differences)
        return found

    def _turned(self, re: str, im: str, turn: float) -> tuple[str, str]:
        """(re + i im) exp(-2 pi i turn)."""
        if turn == 0:
            return self.real(re), self.real(im)
        if turn == 0.25:
            return self.real(im), self.real(f"-({re})")
        cos, sin = (self.constant(f(2 * math.pi * turn)) for f in (math.cos, math.sin))
        return self.real(f"({re}) * {cos} + ({im}) * {sin}"), self.real(f"({im}) * {cos} - ({re}) * {sin}")

    def _add(self, frequency: int, magnitude: str) -> None:
        place = f"total[{frequency * KEYS} + k]"
        self.lines.append(f"{place} = {place} * decay + {magnitude}")
