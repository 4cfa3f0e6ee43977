"""Packing against what it says, one head after the other."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from namm_core import loops
from namm_core.layer.packing import Packing


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows, heads, room, share", [(1, 1, 0, 0.5), (2, 3, 7, 0.2), (3, 1, 5, 0.9), (1, 2, 0, 1.0)])
def test_what_is_kept_stands_to_the_right(compiled, dtype, rows, heads, room, share):
    if compiled and not loops.NUMBA:
        pytest.skip("numba is not installed")
    random = torch.Generator().manual_seed(0)
    columns, behind = 50, 9
    keep = torch.rand(rows, heads, columns, generator=random) < share
    keep[..., -1] = True
    tokens = torch.randn(rows, heads, columns + behind, 4, generator=random).to(dtype)[:, :, :columns]
    state = torch.randn(rows, heads, 6, columns + behind, generator=random).to(dtype)[..., :columns]
    positions = torch.arange(columns + behind).repeat(rows, heads, 1)[..., :columns]
    with nullcontext() if compiled else loops.left_out():
        packing = Packing(keep, room)
    counts = keep.sum(-1)
    assert packing.most == counts.max() and packing.whole == bool(keep.all())
    assert packing.ragged == (counts.min() < counts.max())
    assert packing.counts is None or packing.counts == counts.flatten().tolist()
    found = packing.rows(tokens), packing.positions(positions), packing.columns(state)
    assert all(t.untyped_storage().nbytes() >= t.nbytes // packing.most * (packing.most + room) for t in found)
    for row in range(rows):
        for head in range(heads):
            kept = keep[row, head]
            blank = packing.most - int(kept.sum())
            assert torch.equal(found[0][row, head, blank:], tokens[row, head, kept])
            assert torch.equal(found[1][row, head, blank:], positions[row, head, kept])
            assert torch.equal(found[2][row, head, :, blank:], state[row, head][:, kept])
            assert bool((found[1][row, head, :blank] == -1).all()) and not found[2][row, head, :, :blank].any()
