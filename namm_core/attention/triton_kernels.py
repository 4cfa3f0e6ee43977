"""Triton kernels: attention over heads of unequal length, and the spectrogram of it, without writing it to memory.

The first kernel is attention by an online softmax; beside the output it leaves each query's log of the softmax's sum.
With that the second one makes a tile of keys' probabilities again, hop after hop of queries, and advances their moving
average of |STFT| as it goes: what it reads and writes for a key is the memory's own state. Keys of a head stand in a
row, heads anywhere (`Heads`): padding is not read. Knows nothing of layers, blocks or policies.

Imports Triton, which is optional: `namm_core.attention.fused` asks whether it is there. With TRITON_INTERPRET=1 in the
environment before Triton is first imported, the kernels run on a CPU, in NumPy, for tests.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from namm_core.config import NammConfig
from namm_core.layer.ragged import Heads

INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter."""
PRECISION = "ieee" if torch.version.hip else "tf32x3"
"""Products of float32: three of tf32 each where there are tensor cores for it, close to float32."""
LOG2E = tl.constexpr(1 / math.log(2))


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    heads: Heads,
    scaling: float,
    softcap: float | None = None,
    tile: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the newest tokens, causal among themselves.

    query: (rows, query heads, new, size), of the last `new` keys of every head; keys, values: (rows * kv_heads,
    columns, size) or (tokens, size), as `heads` says; tile: queries and keys of a tile, powers of two from 16 on.
    Returns (rows, new, query heads, value size), and (rows, query heads, new) float32: log2 of each query's sum.
    """
    rows, query_heads, new, size = query.shape
    value_size = values.shape[-1]
    query, keys, values = _last_contiguous(query), _last_contiguous(keys), _last_contiguous(values)
    queries, columns = tile or _attention_tile(max(size, value_size), query.dtype)
    out = query.new_empty(rows, new, query_heads, value_size, dtype=values.dtype)
    sums = query.new_empty(rows, query_heads, new, dtype=torch.float32)
    grid = (triton.cdiv(new, queries), rows * query_heads)
    with torch.cuda.device_of(query):
        _attention[grid](
            query,
            keys,
            values,
            out,
            sums,
            heads.first,
            heads.lengths,
            *query.stride()[:3],
            *_strides(keys),
            *_strides(values),
            *out.stride()[:3],
            new,
            scaling,
            softcap or 1.0,
            QUERY_HEADS=query_heads,
            GROUPS=rows * query_heads // len(heads.lengths),
            SIZE=size,
            VALUE_SIZE=value_size,
            WIDTH=_power(size),
            VALUE_WIDTH=_power(value_size),
            QUERIES=queries,
            KEYS=columns,
            CAPPED=softcap is not None,
            PRECISION=PRECISION,
            INTERPRETED=INTERPRETED,
            num_warps=8 if queries >= 128 else 4,
            num_stages=2,
        )
    return out, sums


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
    query, keys = _last_contiguous(query), _last_contiguous(keys)
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
            *_strides(keys),
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
            WIDTH=_power(size),
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
def _attention(
    query,
    key,
    value,
    out,
    sums,
    first,
    lengths,
    query_row,
    query_head,
    query_token,
    key_head,
    key_token,
    value_head,
    value_token,
    out_row,
    out_token,
    out_head,
    new,
    scaling,
    softcap,
    QUERY_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One tile of queries of one query head: all keys that it sees."""
    head = tl.program_id(1).to(tl.int64)
    row, of_row, kv = head // QUERY_HEADS, head % QUERY_HEADS, head // GROUPS
    length = tl.load(lengths + kv)
    begin = tl.load(first + kv).to(tl.int64)
    m = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    n = tl.arange(0, KEYS)
    d = tl.arange(0, WIDTH)
    e = tl.arange(0, VALUE_WIDTH)
    q = tl.load(
        query + row * query_row + of_row * query_head + m[:, None] * query_token + d[None, :],
        mask=(m < new)[:, None] & (d < SIZE)[None, :],
        other=0.0,
    )
    key += kv * key_head + begin * key_token
    value += kv * value_head + begin * value_token
    old = length - new  # keys of before the block: all queries see them
    end = tl.minimum(old + (tl.program_id(0) + 1) * QUERIES, length)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.full((QUERIES,), 0.0, tl.float32)
    mixed = tl.full((QUERIES, VALUE_WIDTH), 0.0, tl.float32)
    for start in range(0, end, KEYS):
        c = start + n
        k = tl.load(
            key + c[None, :].to(tl.int64) * key_token + d[:, None],
            mask=(c < length)[None, :] & (d < SIZE)[:, None],
            other=0.0,
        )
        s = _logits(_product(q, k, PRECISION, INTERPRETED), scaling, softcap, CAPPED)
        s = tl.where(c[None, :] <= old + m[:, None], s, float("-inf"))
        highest = tl.maximum(top, tl.max(s, axis=1))  # finite: every query sees the first key
        p = tl.exp2(s - highest[:, None])
        fade = tl.exp2(top - highest)
        total = total * fade + tl.sum(p, axis=1)
        v = tl.load(
            value + c[:, None].to(tl.int64) * value_token + e[None, :],
            mask=(c < length)[:, None] & (e < VALUE_SIZE)[None, :],
            other=0.0,
        )
        mixed = mixed * fade[:, None] + _product(p.to(v.dtype), v, PRECISION, INTERPRETED)
        top = highest
    tl.store(
        out + row * out_row + of_row * out_head + m[:, None] * out_token + e[None, :],
        (mixed / total[:, None]).to(out.dtype.element_ty),
        mask=(m < new)[:, None] & (e < VALUE_SIZE)[None, :],
    )
    tl.store(sums + head * new + m, top + tl.log2(total), mask=m < new)


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
    s = _logits(_product(k, q, PRECISION, INTERPRETED), scaling, softcap, CAPPED)
    p = tl.where(asks[None, :] & (c[:, None] <= (old + m)[None, :]), tl.exp2(s - total[None, :]), 0.0)
    return tl.sum(tl.reshape(p, (KEYS, GROUPS_POWER, HOP)), axis=1) / GROUPS


@triton.jit
def _logits(products, scaling, softcap, CAPPED: tl.constexpr):
    """Logits to the base of two."""
    s = products * scaling
    if CAPPED:
        s = softcap * (1 - 2 / (tl.exp2(s * (2 * LOG2E / softcap)) + 1))  # tanh, which the interpreter does not have
    return s * LOG2E


@triton.jit
def _product(a, b, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """a b in float32; the interpreter, whose bfloat16 are bare bits, multiplies no others."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@functools.lru_cache(maxsize=16)
def _basis(config: NammConfig, device: torch.device) -> Tensor:
    """(2 halves of a frame, cosines and sines, hop, hop frequencies) float32, windowed; see `_spectrogram`."""
    hop = config.hop
    m = torch.arange(config.n_fft, dtype=torch.float64)[:, None]
    angle = 2 * math.pi * m * torch.arange(hop, dtype=torch.float64) / config.n_fft
    cosine, sine = angle.cos(), angle.sin()
    sine[:, 0] = (math.pi * m[:, 0]).cos()
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * m / config.n_fft)
    halves = torch.stack([cosine * window, sine * window]).unflatten(1, (2, hop)).transpose(0, 1)
    return halves.float().contiguous().to(device)


def _strides(tensor: Tensor) -> tuple[int, int]:
    """From head to head and from token to token."""
    return (0, tensor.stride(0)) if tensor.ndim == 2 else (tensor.stride(0), tensor.stride(1))


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _power(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _attention_tile(size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Queries and keys of a tile that fit in a streaming multiprocessor's shared memory."""
    return (128, 64) if size * dtype.itemsize <= 256 else (64, 32)


def _spectrogram_tile(size: int, dtype: torch.dtype) -> int:
    """Keys of a tile, likewise."""
    return 128 if size * dtype.itemsize <= 256 else 64
