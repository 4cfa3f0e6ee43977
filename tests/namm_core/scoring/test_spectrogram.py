"""The spectrogram's two ways for a block in tiles, compiled and not, against that for a block's whole attention."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from namm_core import NammConfig, loops
from namm_core.scoring import spectrogram_loops as transform
from namm_core.scoring.spectrogram import Spectrogram

BLOCKS = ([(24, 16), (8, 5), (3, 3), (13, 13)], [(64, 32)], [(5, 5), (6, 6), (70, 70)])
"""Of each case: (queries of a block, queries of a tile), one block after the other."""


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("n_fft", [8, 16, 20, 32, 64, 128])  # 20 and 128 are not compiled
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_are_as_the_whole(compiled, n_fft, groups, blocks, dtype):
    if compiled and not loops.NUMBA:
        pytest.skip("numba is not installed")
    random = torch.Generator().manual_seed(0)
    spectrogram = Spectrogram(NammConfig(8 * n_fft, n_fft, n_fft // 2))
    rows, heads, room = 2, 3, 11  # columns that are not the state's lie between its rows
    whole = tiled = spectrogram.start(rows, heads, torch.device("cpu"), dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 1e-3}
    keys = fed = 0
    for new, step in blocks:
        keys += new
        whole = {name: torch.nn.functional.pad(t, (0, new)) for name, t in whole.items()}
        tiled = {name: torch.nn.functional.pad(t, (0, new + room))[..., :keys] for name, t in tiled.items()}
        visible = torch.arange(keys) <= torch.arange(keys - new, keys)[:, None]
        weights = torch.rand(rows * heads, groups, new, keys, generator=random) * visible
        scale = torch.rand(rows * heads, groups, new, generator=random)
        attention = (weights * scale[..., None]).mean(1).unflatten(0, (rows, heads))
        attention[0, 0, :, :2] = 0  # head 0 holds nothing in its first columns
        whole = spectrogram.observe(whole, attention, [fed] * rows, [new] * rows)
        with nullcontext() if compiled else loops.left_out():
            watch = spectrogram.watch(tiled, fed, new, groups)
        assert (type(watch).__name__ == "_CompiledWatch") == (compiled and n_fft in transform.LENGTHS)
        for some, first in ((slice(0, 1), 2), (slice(1, rows * heads), 0)):
            watch.begin(some, first)
            for start in range(0, new, step):
                stop = min(start + step, new)
                seen = keys - new + stop
                shown = weights[some, :, start:stop, first:seen].contiguous()
                factor = scale[some, :, start:stop].contiguous()
                if fed:
                    watch.show(shown, factor)
                else:
                    watch.show(shown * factor[..., None], None)
            watch.end()
        tiled = watch.state()
        fed += new
        for name, expected in whole.items():
            torch.testing.assert_close(tiled[name], expected, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("n", transform.LENGTHS)
def test_written_out_and_compiled_it_is_the_fourier_transform(n):
    if not loops.NUMBA:
        pytest.skip("numba is not installed")
    random, half = np.random.default_rng(0), n // 2 * transform.KEYS
    first, second = random.random((2, half), dtype=np.float32)
    found, expected = np.ones((2, (n // 2 + 1) * transform.KEYS), np.float32)
    transform._written(n)(first, second, found, np.float32(0.5))
    transform._magnitudes(first, second, expected, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_compiled_is_kept_for_the_next_process(tmp_path):
    if not loops.NUMBA:
        pytest.skip("numba is not installed")
    code = (
        "import numpy as np, sys; from namm_core.scoring import spectrogram_loops as transform\n"
        "loop = transform._written(8); n = transform.KEYS\n"
        "total = np.zeros(5 * n, np.float32)\n"
        "loop(np.ones(4 * n, np.float32), np.ones(4 * n, np.float32), total, np.float32(0.5))\n"
        "print(round(float(total[0]), 6), sum(loop.stats.cache_hits.values()))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for hits in (0, 1):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == ["4.0", str(hits)], done.stderr  # the window's sum at frequency 0
