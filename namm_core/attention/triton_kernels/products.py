"""What both kernels need: products, logits and the layout of tensors. Computes nothing of its own."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter."""
PRECISION = "ieee" if torch.version.hip else "tf32x3"
"""Products of float32: three of tf32 each where there are tensor cores for it, close to float32."""
LOG2E = tl.constexpr(1 / math.log(2))


@triton.jit
def logits(products, scaling, softcap, CAPPED: tl.constexpr):
    """Logits to the base of two."""
    s = products * scaling
    if CAPPED:
        s = softcap * (1 - 2 / (tl.exp2(s * (2 * LOG2E / softcap)) + 1))  # tanh, which the interpreter does not have
    return s * LOG2E


@triton.jit
def product(a, b, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """a b in float32; the interpreter, whose bfloat16 are bare bits, multiplies no others."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


def strides(tensor: Tensor) -> tuple[int, int]:
    """From head to head and from token to token."""
    return (0, tensor.stride(0)) if tensor.ndim == 2 else (tensor.stride(0), tensor.stride(1))


def last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def power(size: int) -> int:
    return max(16, triton.next_power_of_2(size))
