"""Attention through Triton kernels, where there are any: a block's attention is never written out.

Serves what `tiles` serves: blocks whose rows are alike, without a window, without gradients. A policy that wants
attention must say that a kernel can advance it (`Policy.advances`); for the others there are tiles. Knows which
policies and devices are served; knows nothing of how the kernels work. Triton is imported at the first use.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from namm_core.config import NammConfig
from namm_core.layer.blocks import Block
from namm_core.layer.memory_layer import MemoryLayer
from namm_core.layer.ragged import Heads
from namm_core.protocols import State

OLDEST = (3, 7)
"""The oldest version of Triton that serves."""


@functools.cache
def kernels() -> ModuleType | None:
    """The package `triton_kernels`; None without Triton, and in the copy that travels with a memory (`sharing`)."""
    try:
        import triton

        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
            return None
        # By name, so that no copy carries it: transformers imports all modules that a copy consists of.
        return importlib.import_module(f"{__package__}.triton_kernels")
    except ImportError:
        return None


def _loaded() -> ModuleType:
    found = kernels()
    assert found is not None, "`check` has been called"
    return found


def check(device: torch.device) -> None:
    """Raises ValueError where the kernels cannot run on this device."""
    if kernels() is None:
        raise ValueError(
            "fused attention needs Triton 3.7 or newer, which is not installed: pip install 'namm[kernel]'"
        )
    if device.type == "cuda":
        return
    if device.type != "cpu" or not _loaded().INTERPRETED:
        raise ValueError(
            f"fused attention runs on CUDA devices, not on {device.type}: leave it out, or, to test it on a CPU, set "
            "TRITON_INTERPRET=1 before anything is imported"
        )


def serves(layer: MemoryLayer) -> bool:
    """Whether a layer's attention goes through the kernels."""
    return layer.fused and (not layer.policy.needs_attention or layer.policy.advances)


@dataclass(frozen=True)
class Attended:
    """One block's attention, which nobody has written out: what it takes to go over it once more."""

    query: Tensor
    """(rows, query heads, new, size)"""
    keys: Tensor
    """(rows * kv_heads, columns, size)"""
    heads: Heads
    """Which columns each head fills: its tokens are packed to the right."""
    sums: Tensor
    """(rows, query heads, new) float32, log2 of each query's sum of exponentials."""
    scaling: float
    softcap: float | None

    def spectrogram(self, state: State, config: NammConfig) -> State:
        """A spectrogram's state with the block's keys, advanced by the block; writes into `state`."""
        flat = {name: t.flatten(0, 1) for name, t in state.items()}
        heads = self.heads
        after = _loaded().spectrogram(
            self.query, self.keys, heads, self.sums, flat, heads, config, self.scaling, self.softcap
        )
        return {name: t.unflatten(0, state[name].shape[:2]) for name, t in after.items()}


def attend(layer: MemoryLayer, block: Block, query: Tensor, softcap: float | None) -> Tensor:
    """One block of queries over all that the layer holds; the policy is advanced. As `tiles.attend`.

    query: (rows, heads, new, size). Returns (rows, new, heads, size).
    """
    held = layer.content
    keys, values = held.keys.flatten(0, 1), held.values.flatten(0, 1)
    columns = keys.shape[1]
    if held.padded:
        lengths = (held.positions >= 0).sum(-1, dtype=torch.int32).flatten()
    else:
        lengths = torch.full(keys.shape[:1], columns, dtype=torch.int32, device=keys.device)
    heads = Heads.packed(lengths, columns)
    out, sums = _loaded().attention(query, keys, values, heads, layer.scaling, softcap)
    if layer.policy.needs_attention:
        layer.advance(Attended(query, keys, heads, sums, layer.scaling, softcap), block)
    return out
