"""Loops that are compiled where numba is installed, and which tensors they take.

Without numba, tensor operations do the same, with the same numbers up to rounding. Knows nothing of what loops compute.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType

import numpy as np
import torch
from torch import Tensor

NUMBA = importlib.util.find_spec("numba") is not None
"""Whether numba is installed."""
_left_out = False


def serve() -> bool:
    """Whether compiled loops are used in this process: where numba is installed, outside of `left_out`."""
    return NUMBA and not _left_out


@contextmanager
def left_out() -> Iterator[None]:
    """Has tensor operations do everything, as without numba, to compare them with the loops."""
    global _left_out
    before, _left_out = _left_out, True
    try:
        yield
    finally:
        _left_out = before


def plain(*tensors: Tensor) -> bool:
    """Whether compiled loops may work on these: float32 on the CPU, without a gradient."""
    return serve() and all(t.device.type == "cpu" and t.dtype == torch.float32 and not t.requires_grad for t in tensors)


def compiled(signature: str | None = None) -> Callable[[Callable], Callable]:
    """Decorates a loop over arrays: it is compiled at once for this signature, or at its first call for what it gets.

    Only where numba is installed. The compiled form is kept beside the file, or in the user's cache, for other
    processes. Additions and multiplications may be fused and reordered; NaN and infinities are respected.
    """
    njit = importlib.import_module("numba").njit  # by name: a copy that travels with a memory works without it
    types, options = [signature] * (signature is not None), {"fastmath": {"contract", "reassoc", "nsz"}, "nogil": True}

    def decorated(loop: Callable) -> Callable:
        try:
            return njit(*types, cache=True, **options)(loop)
        except RuntimeError:  # no folder to keep it in
            return njit(*types, **options)(loop)

    return decorated


def named(loop: Callable, name: str, **others: object) -> Callable:
    """The same function under another name; `others` replace the globals of these names in it."""
    function = FunctionType(loop.__code__, {**loop.__globals__, **others}, name)
    function.__qualname__ = name
    return function


def spanned(tensor: Tensor) -> np.ndarray:
    """All memory that a tensor spans, as one axis: a compiler then knows that numbers are contiguous."""
    span = 1
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        span += (n - 1) * stride
    return tensor.as_strided((max(span, 0),), (1,)).numpy()
