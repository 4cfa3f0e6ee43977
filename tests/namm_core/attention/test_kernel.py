"""The Triton kernels against the plain code: on a GPU where there is one, else on the CPU in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.namm_core.architectures import small_model, text

pytest.importorskip("triton", reason="Triton is not installed (pip install 'namm[kernel]')")

from namm_core import MemoryCache, Namm, NammConfig
from namm_core.attention import fused
from namm_core.attention import triton_kernels as kernel  # noqa: E402
from namm_core.layer.ragged import Heads  # noqa: E402
from namm_core.policies import H2O, Streaming  # noqa: E402
from namm_core.scoring.spectrogram import Spectrogram  # noqa: E402

DEVICE = "cpu" if kernel.INTERPRETED else "cuda"
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU, and TRITON_INTERPRET=0 forbids the interpreter"
)
CONFIG = NammConfig()


class Case:
    """Random queries, heads of unequal length packed to the right, and a state with carried rows."""

    def __init__(self, rows=1, kv_heads=2, groups=1, new=48, phase=0, size=16, dtype=torch.float32, softcap=None):
        self.generator = torch.Generator().manual_seed(rows + 10 * groups + 100 * new)
        self.new, self.groups, self.softcap, self.scaling = new, groups, softcap, size**-0.5
        self.lengths = torch.randint(new, new + 50, (rows, kv_heads), generator=self.generator)
        self.columns = int(self.lengths.max())
        self.query = 2 * self.random(rows, kv_heads * groups, new, size).to(dtype)
        self.keys = self.random(rows, kv_heads, self.columns, size).to(dtype)
        self.values = self.random(rows, kv_heads, self.columns, size + 4).to(dtype)
        held = torch.float32 if dtype == torch.float32 else torch.float16
        state = {
            "average": (CONFIG.frequencies, torch.float32),
            "carried": (CONFIG.hop, held),
            "pending": (phase, held),
        }
        self.state = {n: self.random(rows, kv_heads, k, self.columns).abs().to(d) for n, (k, d) in state.items()}
        for tensor in self.state.values():
            tensor[..., self.columns - new :] = 0  # the block's own keys have received nothing yet
        self.filled = torch.arange(self.columns) >= self.columns - self.lengths[..., None]

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def plain(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Output and state, one head at a time in float32, with the attention written out."""
        rows, query_heads, new, _ = self.query.shape
        out = torch.zeros(rows, new, query_heads, self.values.shape[-1])
        mean = torch.zeros(rows, self.keys.shape[1], new, self.columns)
        for row in range(rows):
            for head in range(query_heads):
                kv = head // self.groups
                length = int(self.lengths[row, kv])
                keys, values = self.keys[row, kv, -length:].float(), self.values[row, kv, -length:].float()
                logits = self.query[row, head].float() @ keys.T * self.scaling
                if self.softcap:
                    logits = self.softcap * torch.tanh(logits / self.softcap)
                later = torch.ones(new, length, dtype=torch.bool).triu(length - new + 1)
                weights = logits.masked_fill(later, -torch.inf).softmax(-1)
                out[row, :, head] = weights @ values
                mean[row, kv, :, -length:] += weights / self.groups
        fed = [160 + self.state["pending"].shape[2]] * rows
        return out, Spectrogram(CONFIG).observe(dict(self.state), mean, fed, [new] * rows)

    def fused(self, tile: int | None, end_to_end: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The same through the kernels; the state dense again, zero where there is no key."""
        lengths = self.lengths.flatten().int().to(DEVICE)
        keys, values = self.keys.flatten(0, 1), self.values.flatten(0, 1)
        state = {name: tensor.flatten(0, 1).clone() for name, tensor in self.state.items()}
        filled = self.filled.flatten(0, 1)
        heads = Heads.packed(lengths, self.columns)
        if end_to_end:
            heads = Heads.end_to_end(lengths)
            keys, values = keys[filled], values[filled]
            state = {name: tensor.transpose(1, 2)[filled] for name, tensor in state.items()}
        query, keys, values = self.query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE)
        state = {name: tensor.to(DEVICE) for name, tensor in state.items()}
        tiles = tile and (tile, tile)
        out, sums = kernel.attention(query, keys, values, heads, self.scaling, self.softcap, tiles)
        state = kernel.spectrogram(query, keys, heads, sums, state, heads, CONFIG, self.scaling, self.softcap, tile)
        state = {name: tensor.cpu() for name, tensor in state.items()}
        if end_to_end:
            for name, tensor in state.items():
                dense = tensor.new_zeros(len(filled), self.columns, tensor.shape[1])
                dense[filled] = tensor
                state[name] = dense.transpose(1, 2)
        return out.cpu(), {n: t.unflatten(0, self.lengths.shape) * self.filled[:, :, None] for n, t in state.items()}


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ({}, 16),  # all sizes are multiples of a tile's
        ({"rows": 2, "groups": 2, "new": 40, "phase": 3}, 16),
        ({"groups": 4, "new": 33, "phase": 15, "size": 8}, 32),
        ({"groups": 3, "new": 7, "phase": 2}, 16),  # no hop is completed
        ({"rows": 2, "groups": 2, "new": 40, "phase": 5, "size": 20, "dtype": torch.bfloat16}, 32),
        ({"groups": 2, "new": 20, "phase": 9, "softcap": 3.0}, None),
    ],
    ids=["multiples", "carried-rows", "groups-4", "groups-3", "bfloat16", "softcap"],
)
def test_output_and_state_are_the_plain_ones(shape, tile):
    case = Case(**shape)
    out, state = case.fused(tile)
    expected, after = case.plain()
    half = case.query.dtype == torch.bfloat16
    assert out.dtype == case.values.dtype
    torch.testing.assert_close(out.float(), expected, atol=2e-2 if half else 1e-5, rtol=0)
    for name, tensor in state.items():
        # Products of bfloat16 are exact in float32, so that the memory sees no rounding but its own storage's.
        stored = half and name != "average"
        assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape
        wanted = after[name] * case.filled[:, :, None]
        torch.testing.assert_close(
            tensor, wanted, atol=1e-3 if stored else 1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_heads_end_to_end_are_heads_packed_to_the_right():
    """Storage without padding (`namm_core.layer.ragged`) and the dense form of an open layer give the same bits."""
    case = Case(groups=2, new=20, phase=7)
    (out, state), (again, other) = case.fused(16), case.fused(16, end_to_end=True)
    assert torch.equal(out, again)
    assert all(torch.equal(state[name], other[name]) for name in state)


# --- in a model


def theta(rows: int) -> torch.Tensor:
    return torch.randn(rows, 4172, generator=torch.Generator().manual_seed(5)) * 0.1


@torch.no_grad()
def read(architecture: str, policy, fused: bool, pieces: list[int]):
    """Logits of a text of two rows fed in pieces, and what each layer holds in the end."""
    model = small_model(architecture).to(DEVICE)
    ids = torch.stack([text(sum(pieces), seed) for seed in (1, 2)]).to(DEVICE)
    with MemoryCache(model, policy, fused=fused) as cache:
        logits = [model(piece, past_key_values=cache).logits for piece in ids.split(pieces, dim=1)]
        kept = [head.tolist() for layer in range(2) for row in cache.kept_positions(layer) for head in row]
    return torch.cat(logits, dim=1).cpu(), kept


@pytest.mark.parametrize(
    ("architecture", "policy"),
    [
        ("llama", lambda: Namm(NammConfig(update_interval=32), theta(2))),
        ("gemma2", lambda: Namm(NammConfig(update_interval=32), theta(2))),  # soft cap; one layer has a window: tiles
        ("llama", lambda: Streaming(20, 32)),  # wants no attention
    ],
    ids=["namm", "namm-softcap", "streaming"],
)
def test_a_model_reads_alike_and_keeps_the_same_tokens(architecture, policy):
    (logits, kept), (plain, wanted) = (read(architecture, policy(), fused, [40, 27, 1]) for fused in (True, False))
    assert kept == wanted and len({len(head) for head in kept}) > (architecture == "llama" and policy().needs_attention)
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=0)
    assert not torch.equal(logits, plain), "the kernels were not used"


@pytest.mark.parametrize(
    "policy",
    [H2O(20, 32), Namm(NammConfig(update_interval=24, n_fft=24, hop=12), torch.full((3520,), 0.01))],
    ids=["another observer", "a hop that is no power of two"],
)
def test_what_no_kernel_serves_goes_on_in_tiles(policy):
    (logits, _), (plain, _) = (read("llama", policy, fused, [50]) for fused in (True, False))
    assert torch.equal(logits, plain)


class Largest(TorchDispatchMode):
    """Most bytes of any tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        result = function(*arguments, **(settings or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@torch.no_grad()
def test_attention_is_never_written_out():
    model, ids, most = small_model("llama").to(DEVICE), text(192, 1)[None].to(DEVICE), {}
    for kernels in (True, False):
        with MemoryCache(model, Namm(), fused=kernels) as cache:
            model(ids[:, :128], past_key_values=cache)
            with Largest() as largest:
                model(ids[:, 128:], past_key_values=cache, logits_to_keep=1)
        most[kernels] = largest.bytes
    queries_by_keys = 64 * 192 * 4  # of one head of one layer, in float32
    assert most[True] < queries_by_keys <= most[False]


# --- without a GPU, without Triton


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """What the interpreter lets pass and a compiler does not; nothing spills, and the memory of an SM suffices."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_kernel.py")
    done = subprocess.run([sys.executable, script, "80", "90"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(k["kernel"], k["capability"]) for k in compiled] == [
        (name, capability) for capability in (80, 90) for name in ("_attention", "_spectrogram")
    ]
    for one in compiled:
        assert one["spilled"] == 0 and one["shared"] <= 99 << 10 and one["tensor_cores"], one


def test_without_triton_there_are_tiles(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what an import sees where it is not installed
    fused.kernels.cache_clear()
    try:
        with MemoryCache(small_model("llama"), Namm()) as cache, torch.no_grad():
            cache._model(text(20, 1)[None], past_key_values=cache)
        assert cache.layers[0].fused is False
        with MemoryCache(small_model("llama"), Namm(), fused=True) as cache, torch.no_grad():
            with pytest.raises(ValueError, match="needs Triton 3.7 or newer, which is not installed: pip install"):
                cache._model(text(20, 1)[None], past_key_values=cache)
    finally:
        fused.kernels.cache_clear()
