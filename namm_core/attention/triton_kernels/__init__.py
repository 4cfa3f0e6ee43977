"""Triton kernels: attention over heads of unequal length, and the spectrogram of it, without writing it to memory.

Imports Triton, which is optional: `namm_core.attention.fused` asks whether it is there. With TRITON_INTERPRET=1 in the
environment before Triton is first imported, the kernels run on a CPU, in NumPy, for tests. Knows nothing of layers,
blocks or policies.
"""

from namm_core.attention.triton_kernels.attention_kernel import attention
from namm_core.attention.triton_kernels.products import INTERPRETED
from namm_core.attention.triton_kernels.spectrogram_kernel import spectrogram

__all__ = ["INTERPRETED", "attention", "spectrogram"]
