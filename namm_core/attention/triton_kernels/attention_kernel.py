"""The first kernel: attention by an online softmax.

Beside the output it leaves each query's log of the softmax's sum, by which the second kernel (`spectrogram_kernel`)
makes the probabilities again. The keys of a head stand in a row, heads anywhere (`Heads`): padding is not read.
"""

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
from namm_core.layer.ragged import Heads


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
    query, keys, values = last_contiguous(query), last_contiguous(keys), last_contiguous(values)
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
            *strides(keys),
            *strides(values),
            *out.stride()[:3],
            new,
            scaling,
            softcap or 1.0,
            QUERY_HEADS=query_heads,
            GROUPS=rows * query_heads // len(heads.lengths),
            SIZE=size,
            VALUE_SIZE=value_size,
            WIDTH=power(size),
            VALUE_WIDTH=power(value_size),
            QUERIES=queries,
            KEYS=columns,
            CAPPED=softcap is not None,
            PRECISION=PRECISION,
            INTERPRETED=INTERPRETED,
            num_warps=8 if queries >= 128 else 4,
            num_stages=2,
        )
    return out, sums


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
        s = logits(product(q, k, PRECISION, INTERPRETED), scaling, softcap, CAPPED)
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
        mixed = mixed * fade[:, None] + product(p.to(v.dtype), v, PRECISION, INTERPRETED)
        top = highest
    tl.store(
        out + row * out_row + of_row * out_head + m[:, None] * out_token + e[None, :],
        (mixed / total[:, None]).to(out.dtype.element_ty),
        mask=(m < new)[:, None] & (e < VALUE_SIZE)[None, :],
    )
    tl.store(sums + head * new + m, top + tl.log2(total), mask=m < new)


def _attention_tile(size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Queries and keys of a tile that fit in a streaming multiprocessor's shared memory."""
    return (128, 64) if size * dtype.itemsize <= 256 else (64, 32)
