"""The second kernel: the spectrogram of the attention that the first one has computed.

It makes a tile of keys' probabilities again, hop after hop of queries, and advances their moving average of |STFT| as
it goes: what it reads and writes for a key is the memory's own state. One of the four forms of the transform in
`namm_core.scoring.fourier`.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from namm_core.attention.triton_kernels.products import (
    INTERPRETED,
    PRECISION,
    last_contiguous,
    logits,
    power,
    product,
    strides,
)
from namm_core.config import NammConfig
from namm_core.layer.ragged import Heads
from namm_core.scoring import fourier


def spectrogram(
    query: Tensor,
    keys: Tensor,
    heads: Heads,
    sums: Tensor,
    state: dict[str, Tensor],
    held: Heads,
    config: NammConfig,
    scaling: float,
    softcap: float | None = None,
    tile: int | None = None,
) -> dict[str, Tensor]:
    """Advances a spectrogram's state by the attention that `attention` has just computed.

    query, keys, heads, scaling, softcap: as there; sums: its second result; state: `spectrogram.State` with the new
    keys (zeros), (rows * kv_heads, n, columns) or (tokens, n) each, as `held` says, whose lengths are those of `heads`;
    `average` and `carried` are written into; config: with a hop that is a power of two, 16 or more; tile: keys of a
    tile, a power of two from 16 on. Returns the new state.
    """
    rows, query_heads, new, size = query.shape
    query, keys = last_contiguous(query), last_contiguous(keys)
    hop, ended = config.hop, state["average"].ndim == 2
    phase = state["pending"].shape[1]
    shape = list(state["pending"].shape)
    shape[1] = left = (phase + new) % hop
    pending = state["pending"].new_zeros(shape)
    groups = rows * query_heads // len(heads.lengths)
    columns = tile or _spectrogram_tile(size, query.dtype)
    grid = (triton.cdiv(heads.longest, columns), len(heads.lengths))
    # Of (tokens, n) the first axis is the keys, and heads need no stride; of (heads, n, columns) the last one.
    places = [
        (0, t.stride(0), t.stride(1)) if ended else (t.stride(0), t.stride(2), t.stride(1))
        for t in (state["average"], state["carried"], state["pending"], pending)
    ]
    with torch.cuda.device_of(query):
        _spectrogram[grid](
            query,
            keys,
            sums,
            state["average"],
            state["carried"],
            state["pending"],
            pending,
            _basis(config, query.device),
            heads.first,
            held.first,
            heads.lengths,
            *query.stride()[:3],
            *strides(keys),
            *(stride for place in places for stride in place),
            new,
            phase,
            left,
            scaling,
            softcap or 1.0,
            config.ema**hop,
            QUERY_HEADS=query_heads,
            GROUPS=groups,
            GROUPS_POWER=triton.next_power_of_2(groups),
            SIZE=size,
            WIDTH=power(size),
            KEYS=columns,
            HOP=hop,
            CAPPED=softcap is not None,
            PRECISION=PRECISION,
            INTERPRETED=INTERPRETED,
            num_warps=8 if columns >= 128 else 4,
            num_stages=2,
        )
    return {"average": state["average"], "carried": state["carried"], "pending": pending}


@triton.jit
def _spectrogram(
    query,
    key,
    sums,
    average,
    carried,
    pending,
    after,
    basis,
    first,
    held,
    lengths,
    query_row,
    query_head,
    query_token,
    key_head,
    key_token,
    average_head,
    average_token,
    average_of,
    carried_head,
    carried_token,
    carried_of,
    pending_head,
    pending_token,
    pending_of,
    after_head,
    after_token,
    after_of,
    new,
    phase,
    left,
    scaling,
    softcap,
    decay,
    QUERY_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_POWER: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    HOP: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One tile of keys of one KV head: the attention that it receives, hop by hop of queries.

    A frame is the hop before and this one. Keys are the rows of all products here, which suits tensor cores.
    """
    kv = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + kv)
    tile = tl.program_id(0) * KEYS
    if tile >= length:
        return
    c = tile + tl.arange(0, KEYS)
    d = tl.arange(0, WIDTH)
    f = tl.arange(0, HOP)  # frequencies, and places in a hop
    real = (c < length)[:, None]
    begin = tl.load(first + kv).to(tl.int64)
    k = tl.load(
        key + kv * key_head + (begin + c[:, None]) * key_token + d[None, :],
        mask=real & (d < SIZE)[None, :],
        other=0.0,
    )
    kv_heads: tl.constexpr = QUERY_HEADS // GROUPS
    query += (kv // kv_heads) * query_row + (kv % kv_heads) * GROUPS * query_head
    sums += kv * GROUPS * new
    token = tl.load(held + kv).to(tl.int64) + c[:, None]
    average += kv * average_head + token * average_token
    carried += kv * carried_head + token * carried_token + f[None, :] * carried_of
    pending += kv * pending_head + token * pending_token + f[None, :] * pending_of
    after += kv * after_head + token * after_token + f[None, :] * after_of
    cosines = basis + f[:, None] * HOP + f[None, :]  # (2 halves, 2 parts, hop, hop)
    first_cosine, first_sine = tl.load(cosines), tl.load(cosines + HOP * HOP)
    second_cosine, second_sine = tl.load(cosines + 2 * HOP * HOP), tl.load(cosines + 3 * HOP * HOP)
    before = tl.load(carried, mask=real, other=0.0).to(tl.float32)
    waiting = tl.load(pending, mask=real & (f < phase)[None, :], other=0.0).to(tl.float32)
    mean = tl.load(average + f[None, :] * average_of, mask=real, other=0.0)
    # The sine of frequency 0 vanishes: in its place stands the highest frequency, which is real.
    highest = tl.load(average + HOP * average_of, mask=real, other=0.0)
    last = tl.where(f[None, :] == 0, highest, 0.0)
    old = length - new
    frames = (phase + new) // HOP
    # A tile of the block's own keys receives nothing before the first of them; its average and hops are zero.
    begins = (phase + tl.maximum(tile - old, 0)) // HOP
    for t in range(begins, frames):
        hop = _received(
            query, sums, k, c, old, t, new, phase, query_head, query_token, scaling, softcap,
            GROUPS, GROUPS_POWER, SIZE, WIDTH, KEYS, HOP, CAPPED, PRECISION, INTERPRETED,
        )  # fmt: skip
        hop += tl.where(t == 0, waiting, 0.0)
        re = tl.dot(before, first_cosine, input_precision=PRECISION)
        re = tl.dot(hop, second_cosine, acc=re, input_precision=PRECISION)
        im = tl.dot(before, first_sine, input_precision=PRECISION)
        im = tl.dot(hop, second_sine, acc=im, input_precision=PRECISION)
        magnitude = tl.where(f[None, :] == 0, tl.abs(re), tl.sqrt(re * re + im * im))
        mean = mean * decay + magnitude * (1 - decay)
        last = last * decay + tl.abs(im) * (1 - decay)  # of frequency 0 alone it means something
        before = hop
    tl.store(average + f[None, :] * average_of, mean, mask=real)
    highest = tl.sum(tl.where(f[None, :] == 0, last, 0.0), axis=1)
    tl.store(average + HOP * average_of, highest[:, None], mask=real)
    tl.store(carried, before.to(carried.dtype.element_ty), mask=real)
    if left > 0:
        hop = _received(
            query, sums, k, c, old, frames, new, phase, query_head, query_token, scaling, softcap,
            GROUPS, GROUPS_POWER, SIZE, WIDTH, KEYS, HOP, CAPPED, PRECISION, INTERPRETED,
        )  # fmt: skip
        hop += tl.where(frames == 0, waiting, 0.0)
        tl.store(after, hop.to(after.dtype.element_ty), mask=real & (f < left)[None, :])


@triton.jit
def _received(
    query,
    sums,
    k,
    c,
    old,
    t,
    new,
    phase,
    query_head,
    query_token,
    scaling,
    softcap,
    GROUPS: tl.constexpr,
    GROUPS_POWER: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    HOP: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """(KEYS, HOP) what keys c receive from the queries of hop t, mean over the query group."""
    n = tl.arange(0, GROUPS_POWER * HOP)
    d = tl.arange(0, WIDTH)
    group = n // HOP
    m = t * HOP + n % HOP - phase
    asks = (group < GROUPS) & (m >= 0) & (m < new)
    q = tl.load(
        query + group[None, :] * query_head + m[None, :] * query_token + d[:, None],
        mask=asks[None, :] & (d < SIZE)[:, None],
        other=0.0,
    )
    total = tl.load(sums + group * new + m, mask=asks, other=0.0)
    s = logits(product(k, q, PRECISION, INTERPRETED), scaling, softcap, CAPPED)
    p = tl.where(asks[None, :] & (c[:, None] <= (old + m)[None, :]), tl.exp2(s - total[None, :]), 0.0)
    return tl.sum(tl.reshape(p, (KEYS, GROUPS_POWER, HOP)), axis=1) / GROUPS


@functools.lru_cache(maxsize=16)
def _basis(config: NammConfig, device: torch.device) -> Tensor:
    """(2 halves of a frame, cosines and sines, hop, hop frequencies) float32, windowed; see `_spectrogram`."""
    hop = config.hop
    angle = fourier.angles(config.n_fft)[:hop].T
    cosine, sine = angle.cos(), angle.sin()
    sine[:, 0] = fourier.angles(config.n_fft)[hop].cos()
    window = fourier.window(config.n_fft)[:, None]
    halves = torch.stack([cosine * window, sine * window]).unflatten(1, (2, hop)).transpose(0, 1)
    return halves.float().contiguous().to(device)


def _spectrogram_tile(size: int, dtype: torch.dtype) -> int:
    """Keys of a tile, likewise."""
    return 128 if size * dtype.itemsize <= 256 else 64
