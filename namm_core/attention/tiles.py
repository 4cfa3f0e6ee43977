"""Attention in tiles that fit a processor's cache: some heads times some queries at a time.

Everything that is done with a tile's probabilities (values, the mean over a query group, what a policy makes of them)
happens while they are in the cache, so that a block's attention is never written out. Each tile is as wide as its own
heads need: keys after its queries, and columns that only other heads fill, are left out. Knows nothing of policies but
that they watch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from namm_core.layer.blocks import Block
from namm_core.layer.content import Content
from namm_core.layer.lengths import longest_rows
from namm_core.layer.memory_layer import MemoryLayer
from namm_core.loops import compiled, plain
from namm_core.tiling import QUERIES, grouped

CACHE = 1 << 20
"""Bytes of probabilities in a tile on a CPU: with what is made of them they fit into a core's second-level cache. On a
GPU one tile holds all heads and queries of a block, for fewer, larger kernels (`MemoryLayer.tiled`)."""
LARGEST = 40.0
"""Logits up to which float32 holds all exponentials, their sums and their shares of a sum."""


def attend(layer: MemoryLayer, block: Block, query: Tensor, softcap: float | None) -> Tensor:
    """One block of queries, the same columns for all rows, over all that the layer holds; the policy watches.

    query: (rows, heads, new, size). Returns (rows, new, heads, size).
    """
    held = layer.content
    rows, heads, new, size = query.shape
    kv_heads, columns = held.keys.shape[1:3]
    groups, lowest = heads // kv_heads, torch.finfo(query.dtype).min
    # Head after head in memory, which the result of a plain product may not be.
    queries = torch.mul(query, layer.scaling, out=query.new_empty(query.shape))
    queries = queries.view(rows * kv_heads, groups, new, size)  # query head h reads KV head h // groups
    keys, values = held.keys.flatten(0, 1).transpose(1, 2), held.values.flatten(0, 1)
    padding = (held.positions < 0).flatten(0, 1) if held.padded else None
    out = queries.new_empty(rows * kv_heads, groups, new, values.shape[-1])
    watch = layer.watch(block, groups)
    step = min(new, QUERIES) if layer.tiled else new
    shapes = (step, step), query.dtype, query.device
    room = CACHE // (groups * step * query.element_size()) if layer.tiled else rows * kv_heads * columns
    bounds = _bounds(held, queries, softcap) if layer.tiled and query.dtype == torch.float32 else None
    for some, width in grouped(held.widths, room):
        # Where some of these heads may hold nothing; of one tile for all, that is known without waiting for the device.
        blank = columns - (min(held.widths[some]) if layer.tiled else new)
        first = columns - width
        # Where no weight can overflow, the largest logit need not be found first.
        bounded = bounds is not None and max(bounds[some]) < LARGEST
        hidden = None
        if bounded:
            blanks = [width - own for own in held.widths[some]]
        elif padding is not None and blank > first:
            hidden = padding[some, None, first:blank].to(query.dtype) * lowest
        tile = queries.new_empty(groups * step * width * (some.stop - some.start))
        if watch is not None:
            watch.begin(some, first)
        for start in range(0, new, step):
            stop = min(start + step, new)
            seen = columns - new + stop
            taken = queries[some, :, start:stop].flatten(1, 2)
            scores = tile[: taken.shape[0] * taken.shape[1] * (seen - first)].view(*taken.shape[:2], seen - first)
            torch.bmm(taken, keys[some, :, first:seen], out=scores)
            if softcap is not None:
                scores.div_(softcap).tanh_().mul_(softcap)
            wide = scores.view(-1, groups, stop - start, seen - first)
            if bounded:  # exp(-inf) takes twenty times as long: hidden keys come after it
                scores.exp_()
                weights, scale = wide, settle(wide, blanks)
                mixed = torch.bmm(scores, values[some, first:seen])
                torch.mul(mixed.view(*scale.shape, -1), scale[..., None], out=out[some, :, start:stop])
            else:
                if hidden is not None:
                    scores[..., : blank - first] += hidden
                later = _later(*shapes)
                wide[..., start - stop :] += later[: stop - start, : stop - start]
                if scores.dtype == torch.float32:
                    weights = torch.softmax(scores, dim=-1, out=scores)
                else:
                    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
                mixed = torch.bmm(weights.to(values.dtype), values[some, first:seen])
                weights, scale = weights.view_as(wide), None
                out[some, :, start:stop] = mixed.view(-1, groups, stop - start, mixed.shape[-1])
            if watch is not None:
                watch.show(weights, scale)
        if watch is not None:
            watch.end()
    if watch is not None:
        layer.replace_state(watch.state())
    return out.view(rows, heads, new, -1).transpose(1, 2)


def settle(weights: Tensor, blank: list[int]) -> Tensor:
    """Hides keys in exponentials of logits, weights (heads, groups, queries, keys), by setting them to zero.

    It hides the first `blank` keys of each head, and keys later than their query; the last keys are the tokens of the
    queries. Returns (heads, groups, queries), what the weights must be multiplied by to add up to one.
    """
    heads, groups, queries, keys = weights.shape
    if plain(weights):
        scale = weights.new_empty(heads, groups, queries)
        _settling()(weights.numpy(), np.array(blank), scale.numpy())
        return scale
    if any(blank):
        column = torch.arange(max(blank), device=weights.device)
        hidden = column < torch.tensor(blank, device=weights.device)[:, None]
        weights[..., : max(blank)].masked_fill_(hidden[:, None, None], 0)
    weights[..., keys - queries :].tril_()
    return weights.sum(-1).reciprocal_()


@functools.cache
def _settling() -> Callable:
    """The loop of `settle`."""

    @compiled("void(float32[:,:,:,::1], int64[::1], float32[:,:,::1])")
    def settled(weights, blank, scale):
        heads, groups, queries, keys = weights.shape
        for head in range(heads):
            for group in range(groups):
                for query in range(queries):
                    row = weights[head, group, query]
                    row[: blank[head]] = 0
                    row[keys - queries + query + 1 :] = 0
                    total = np.float32(0)
                    for key in range(keys):
                        total += row[key]
                    scale[head, group, query] = 1 / total

    return settled


def _bounds(held: Content, queries: Tensor, softcap: float | None) -> list[float]:
    """What no logit of each head exceeds in magnitude: the product of its longest query and key, or the cap."""
    if softcap is not None:
        return [softcap] * len(queries)
    return (longest_rows(queries.flatten(1, 2)) * held.longest_keys()).tolist()


@functools.lru_cache(maxsize=16)
def _later(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to logits to hide keys later than their query."""
    return torch.full(shape, torch.finfo(dtype).min, dtype=dtype, device=device).triu_(1)
