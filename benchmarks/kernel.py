"""The fused kernels on a GPU: beside their roofline, the plain version and attention that no memory watches.

`make bench-kernel`, or `python -m benchmarks.kernel`. One layer of Llama-3-8B's shape in bf16 takes a block of 512 new
tokens over caches whose heads hold unequal numbers of tokens, `--keys` on average. *Roofline* is the larger of
arithmetic over the data sheet's peak and bytes over its bandwidth, for an H100 unless `--tflops` and `--bandwidth` say
another; *of it* is that over the time taken. *Plain* is `attention.tiles` on the same tensors, *sdpa* PyTorch's fused
attention over heads that all hold as many tokens as the fullest one, without a spectrogram.

Without a GPU it says so in one line. `--small` runs everything once on a tiny layer, on any device (on a CPU with
TRITON_INTERPRET=1 in the environment): to see that it runs; such times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from namm_core import Namm
from namm_core.attention import fused, tiles
from namm_core.layer.blocks import Block
from namm_core.layer.memory_layer import MemoryLayer
from namm_core.layer.ragged import Heads
from namm_core.layer.stored import Dense
from orchestrator.plan.cost import Gpu

ROWS, KEYS = (1, 8), (2048, 8192, 32768)
SPREAD = 0.5
"""Heads hold the mean number of tokens times 1 - SPREAD to 1 + SPREAD."""


@dataclass(frozen=True)
class Shape:
    """One layer and one block."""

    rows: int
    keys: int
    """Tokens that a head holds on average, the block's own included."""
    new: int = 512
    kv_heads: int = 8
    groups: int = 4
    size: int = 128


@dataclass
class Result:
    """Milliseconds each; None where the device's memory did not suffice."""

    rows: int
    keys: int
    attention: float | None
    """The first kernel."""
    attention_roofline: float
    spectrogram: float | None
    """The second one."""
    spectrogram_roofline: float
    plain: float | None
    sdpa: float | None


def measure(shape: Shape, device: torch.device, dtype: torch.dtype, gpu: Gpu) -> Result:
    """All variants on one layer."""
    from namm_core.attention import triton_kernels as kernel

    generator = torch.Generator().manual_seed(0)
    total = shape.rows * shape.kv_heads
    spread = 1 + SPREAD * (2 * torch.rand(total, generator=generator) - 1)
    lengths = (spread * shape.keys).int().clamp(min=shape.new)
    columns = int(lengths.max())
    layer, query = _layer(shape, lengths, columns, device, dtype)
    block = Block([4 * columns] * shape.rows, [shape.new] * shape.rows, [False] * shape.rows, slice(0, shape.new))
    scaling = shape.size**-0.5
    heads = Heads.packed(lengths.to(device), columns)
    content = layer.content
    keys, values = content.keys.flatten(0, 1), content.values.flatten(0, 1)
    _, sums = kernel.attention(query, keys, values, heads, scaling)
    attended = fused.Attended(query, keys, heads, sums, scaling, None)
    state = content.state

    def plain() -> None:
        layer.replace_state(state)
        tiles.attend(layer, block, query, None)

    def sdpa() -> None:
        mask = causal_lower_right(shape.new, columns)
        torch.nn.functional.scaled_dot_product_attention(
            query, content.keys, content.values, mask, scale=scaling, enable_gqa=True
        )

    # Pairs of a query head's query and a key that it sees.
    seen = lengths.double() * shape.new - shape.new * (shape.new - 1) / 2
    pairs = shape.groups * float(seen.sum())
    config = layer.policy.config
    fourier = float(seen.sum()) / config.hop * 2 * config.n_fft**2
    held, new = float(lengths.sum()), shape.rows * shape.kv_heads * shape.groups * shape.new
    of_key = 2 * (config.frequencies * 4 + config.hop * state["carried"].dtype.itemsize)  # read and written
    tokens = shape.size * dtype.itemsize
    return Result(
        shape.rows,
        shape.keys,
        _time(lambda: kernel.attention(query, keys, values, heads, scaling), device),
        _roofline(4 * shape.size * pairs, 2 * (held + new) * tokens, gpu),
        _time(lambda: attended.spectrogram(state, config), device),
        _roofline(2 * shape.size * pairs + fourier, (held + new) * tokens + held * of_key, gpu),
        _time(plain, device),
        _time(sdpa, device),
    )


def _layer(
    shape: Shape, lengths: Tensor, columns: int, device: torch.device, dtype: torch.dtype
) -> tuple[MemoryLayer, Tensor]:
    """An open layer, the block appended, and the block's queries (rows, heads, new, size)."""
    generator = torch.Generator(device).manual_seed(0)
    rows, heads, size = shape.rows, shape.kv_heads, shape.size

    def random(heads: int, tokens: int) -> Tensor:
        return torch.randn(rows, heads, tokens, size, generator=generator, device=device, dtype=dtype)

    layer = MemoryLayer(Namm(), index=0, tiled=False)
    layer.lazy_initialization(random(heads, 0), random(heads, 0))
    positions = torch.arange(columns, device=device).expand(rows, heads, columns)
    first = (columns - lengths.to(device)).view(rows, heads, 1)
    state = {name: t.new_zeros(*t.shape[:3], columns) for name, t in layer.stored.state.items()}
    filled = positions.masked_fill(positions < first, -1)
    layer.stored = Dense(random(heads, columns), random(heads, columns), filled, state, padded=True)
    layer.update(random(heads, 0), random(heads, 0))  # a call without new tokens leaves it open
    layer.begin_read(0, scaling=size**-0.5)
    return layer, random(heads * shape.groups, shape.new)


def _roofline(flop: float, moved: float, gpu: Gpu) -> float:
    """Milliseconds at the peaks."""
    return 1e3 * max(flop / (gpu.tensor * 1e12), moved / (gpu.bandwidth * 1e12))


def _time(run: Callable[[], object], device: torch.device) -> float | None:
    """Median milliseconds; None where memory does not suffice."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    from triton.testing import do_bench

    try:
        return do_bench(run, return_mode="median")
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _table(results: list[Result]) -> Table:
    table = Table(title="Milliseconds of one layer and one block of new tokens")
    for name in ("rows", "keys a head", "attention", "of roofline", "spectrogram", "of roofline", "both"):
        table.add_column(name, justify="right")
    table.add_column("plain", justify="right")
    table.add_column("sdpa alone", justify="right")
    for r in results:
        both = r.attention + r.spectrogram if r.attention and r.spectrogram else None
        parts = [r.attention, r.attention_roofline], [r.spectrogram, r.spectrogram_roofline]
        cells = [cell for taken, least in parts for cell in (_ms(taken), f"{least / taken:.0%}" if taken else "")]
        table.add_row(f"{r.rows}", f"{r.keys:,}", *cells, _ms(both), _ms(r.plain), _ms(r.sdpa))
    return table


def _ms(value: float | None) -> str:
    return "out of memory" if value is None else f"{value:.3f}"


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    sheet = Gpu()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="rows of the batch")
    parser.add_argument("--keys", type=int, nargs="+", default=list(KEYS), help="tokens that a head holds on average")
    parser.add_argument("--tflops", type=float, default=sheet.tensor, help=f"peak in bf16, dense ({sheet.tensor:g})")
    parser.add_argument("--bandwidth", type=float, default=sheet.bandwidth, help=f"TB/s ({sheet.bandwidth:g})")
    parser.add_argument("--small", action="store_true", help="a tiny layer on any device, to see that it runs")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if not (torch.cuda.is_available() or options.small):
        print("kernel: not measured, there is no CUDA device here")
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        fused.check(device)
    except ValueError as error:
        print(f"kernel: not measured, {error}")
        return 1
    if options.small:
        shapes, dtype = [Shape(rows=1, keys=96, new=32, kv_heads=2, groups=2, size=16)], torch.float32
    else:
        shapes, dtype = [Shape(rows, keys) for rows in options.rows for keys in options.keys], torch.bfloat16
    gpu = Gpu(tensor=options.tflops, bandwidth=options.bandwidth)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, interpreted"
    results = [measure(shape, device, dtype, gpu) for shape in shapes]
    console = Console()
    console.print(_table(results))
    console.print(f"{name}; torch {torch.__version__}; roofline of {gpu.tensor:g} TFLOP/s, {gpu.bandwidth:g} TB/s")
    if options.json:
        options.json.write_text(json.dumps({"device": name, "results": [asdict(r) for r in results]}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
