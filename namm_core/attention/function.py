"""The one attention function that serves every architecture: forgetting happens inside it.

A layer's block of queries needs only that layer's cache as its own evictions left it, and the layer below for the same
block. So one forward call may bring any number of tokens: they are processed in blocks that end at updates, which gives
exactly what feeding them chunk by chunk gives. Registered with transformers under `NAME`.

Knows nothing of policies beyond whether they want to see attention.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from namm_core.attention import fused, tiles
from namm_core.layer.blocks import Block
from namm_core.layer.memory_layer import MemoryLayer, marked
from namm_core.support import NO_WEIGHTS

NAME = "namm"


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention over the memory for all new tokens of one call, with the updates that fall due on the way.

    query: (rows, heads, new, size); key, value: (rows, kv_heads, new, size), after rotary embedding, marked by
    `MemoryLayer.update`; attention_mask: (rows, columns) bool, False for padding, or None. Returns
    ((rows, new, heads, size), None). Keys without a mark (another cache, or none) get stock attention.
    """
    if torch.compiler.is_compiling():  # what a memory does differs from call to call
        return _uncompiled(
            module, query, key, value, attention_mask, scaling, dropout, softcap, sliding_window, **kwargs
        )
    layer = marked(key)
    if layer is None:
        mask = _stock_mask(query, key, attention_mask, sliding_window)
        if softcap is not None:  # fused kernels have none
            return _capped(query, key, value, mask, query.shape[-1] ** -0.5 if scaling is None else scaling, softcap)
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            mask,
            scaling=scaling,
            dropout=dropout,
            is_causal=False,
            **kwargs,
        )
    device = query.device.type
    if torch.is_autocast_enabled(device):  # the memory has one precision, which `MemoryLayer.update` has chosen
        with torch.autocast(device, enabled=False):
            return attention_forward(
                module, query, key, value, attention_mask, scaling, dropout, softcap, sliding_window, **kwargs
            )
    if kwargs.get("output_attentions"):
        raise ValueError(NO_WEIGHTS)
    if kwargs.get("s_aux") is not None:
        raise ValueError("attention sinks as parameters (s_aux) are not supported by this memory")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError("a memory takes a 2D padding mask; masks of other shapes are not supported")
    if layer.fused:
        fused.check(query.device)
    tokens = query.shape[2]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    real = None if attention_mask is None else attention_mask[:, -tokens:].bool()
    wanted, query = query.dtype, query.to(key.dtype)
    out = query.new_zeros(query.shape[0], tokens, query.shape[1], value.shape[-1])
    for block in layer.begin_read(tokens, real, scaling, sliding_window):
        layer.append(block.take(key), block.take(value), block)
        queries = block.take(query)
        if block.alike and sliding_window is None and block.new > 1 and not queries.requires_grad:
            attend = fused.attend if fused.serves(layer) else tiles.attend
            attended = attend(layer, block, queries, softcap)
        else:
            attended = _attend(layer, block, queries, softcap)
        layer.summarise(queries, block)
        block.put(out, attended)
        layer.finish(block)
    layer.end_read()
    return out.to(wanted), None


_uncompiled = torch.compiler.disable(attention_forward)


def _attend(layer: MemoryLayer, block: Block, query: Tensor, softcap: float | None) -> Tensor:
    """One block of queries (rows, heads, new, size) over all that the layer holds; the policy watches.

    Serves every block: rows that differ, windows, single tokens, gradients. Returns (rows, new, heads, size).
    """
    held, window = layer.content, layer.window
    rows, heads, new, size = query.shape
    kv_heads, columns = held.keys.shape[1], held.keys.shape[2]
    groups = heads // kv_heads
    grouped = (query * layer.scaling).reshape(rows, kv_heads, groups * new, size)  # query head h: KV head h // groups
    scores = torch.matmul(grouped, held.keys.transpose(2, 3)).view(rows, kv_heads, groups, new, columns)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    lowest = torch.finfo(scores.dtype).min
    if block.alike and window is None:
        if held.padded:
            padding = (held.positions < 0).to(scores.dtype) * lowest  # added: ten times faster than filled in
            scores += padding[:, :, None, None]
        if new > 1:
            later = torch.full((new, new), lowest, dtype=scores.dtype, device=scores.device).triu_(1)
            scores[..., columns - new :] += later
    else:
        at, of = block.positions(scores.device)[:, None, :, None], held.positions[:, :, None]
        hidden = (of < 0) | (of > at)
        if window is not None:
            hidden |= of <= at - window
        scores.masked_fill_(hidden[:, :, None], lowest)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    if not block.alike:  # blank queries see nothing and show nothing
        weights = weights * block.valid(weights.device)[:, None, None, :, None]
    mixed = torch.matmul(weights.to(held.values.dtype).view(rows, kv_heads, groups * new, columns), held.values)
    if layer.policy.needs_attention:
        mean = weights[:, :, 0]  # a sum of slices: several times faster than `mean` over a short inner axis
        for group in range(1, groups):
            mean = mean + weights[:, :, group]
        layer.observe(mean / groups, block)
    return mixed.view(rows, heads, new, held.values.shape[-1]).transpose(1, 2)


def _stock_mask(query: Tensor, key: Tensor, padding: Tensor | None, window: int | None) -> Tensor:
    """(rows, 1, new, keys) bool for a cache that is not ours on a model that carries this function."""
    new, columns = query.shape[2], key.shape[2]
    at = torch.arange(columns - new, columns, device=query.device)[:, None]
    of = torch.arange(columns, device=query.device)
    visible = of <= at
    if window is not None:
        visible &= of > at - window
    visible = visible[None, None]
    if padding is not None:
        visible = visible & padding[:, None, None, -columns:].bool()
    return visible.expand(query.shape[0], 1, new, columns)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float, softcap: float
) -> tuple[Tensor, None]:
    """Attention with soft-capped logits for a cache that is not ours; visible: (rows, 1, new, keys) bool."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.tanh(torch.matmul(query * scaling, key.transpose(2, 3)) / softcap) * softcap
    weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32)
    return torch.matmul(weights.to(value.dtype), value).transpose(1, 2), None


def _padding_mask(attention_mask: Tensor | None = None, allow_is_causal_skip: bool = True, **_) -> Tensor | None:
    """Hands on the padding alone; what may be seen is settled per block, from true positions.

    transformers forbids the skip wherever more, or less, than causality and a window decides what is seen.
    """
    if not allow_is_causal_skip:
        raise ValueError(
            "this input is not read from left to right alone (images that see themselves whole, packed sequences): "
            "not supported by this memory's attention"
        )
    return attention_mask


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, _padding_mask)
