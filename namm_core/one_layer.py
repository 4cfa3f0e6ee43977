"""What a policy keeps of one layer's text, given its queries, keys and values: for caches that are not ours.

Reads the text as a `MemoryCache` would, of this layer alone. Knows no model and no other cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from namm_core.attention.function import attention_forward
from namm_core.layer.memory_layer import MemoryLayer
from namm_core.protocols import Policy
from namm_core.rotary import Rotary


@torch.no_grad()
def kept(
    policy: Policy,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int = 0,
    layers: int = 1,
    rotary: Rotary | None = None,
    scaling: float | None = None,
) -> Tensor:
    """(rows, kv_heads, tokens) bool, what is held after the last token; at least that one.

    query: (rows, heads, tokens, size); key, value: (rows, kv_heads, tokens, size), queries and keys after rotary
    embedding; layer: index among `layers`; rotary: of this layer, for policies that ask; scaling: of attention logits,
    None: 1 / sqrt(size). Runs in tiles on every device, since a policy may see the whole text before it forgets.
    """
    memory = MemoryLayer(policy, layer, rotary, tiled=True, layers=layers)
    marked, values = memory.update(key.view_as(key), value)  # the mark must not stay on the caller's tensor
    attention_forward(nn.Identity(), query, marked, values, None, scaling)
    assert memory.stored is not None
    rows, heads, tokens = key.shape[:3]
    found = torch.zeros(rows, heads, 1 + tokens, dtype=torch.bool, device=key.device)
    return found.scatter_(-1, memory.stored.dense().positions.long() + 1, True)[..., 1:]  # padding is -1
