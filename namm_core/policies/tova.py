"""TOVA (Oren et al., arXiv 2401.06104): the newest query alone says what the next ones will look at.

The paper drops one token at each step, as soon as the cache is over its size. Here what is too much goes at each
update, by the attention of the query right before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.policy import Scoring
from namm_core.protocols import State, View


@dataclass
class TOVA(Scoring):
    """Keeps the tokens with the most attention of the newest query, mean over the layer's heads: the same in all.

    The newest token stays too, as everywhere here; the paper does not force it.
    """

    settings = (  # all heads of a layer have the same scores, so that they have nothing to share
        {},
        {"sinks": 4},
        {"recent": 0.25},
        {"whole_layers": 1},
        {"whole_layers": 2},
        {"whole_layers": 2, "sinks": 4},
    )
    needs_attention = True

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """`last` (rows, kv_heads, 1, 0), float32: attention that each key received by the newest query."""
        return {"last": torch.zeros(rows, heads, 1, 0, device=device)}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """Takes the last query of attention (rows, kv_heads, new, keys)."""
        last = attention[:, :, -1:].clone()  # never a view of the whole block
        if 0 in counts:  # a row without a token in this block keeps what its last query said
            idle = torch.tensor([count == 0 for count in counts], device=attention.device)
            last = torch.where(idle[:, None, None, None], state["last"], last)
        return {"last": last}

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys): attention by the newest query, mean over heads."""
        # Query groups are of one size, so the mean of their means is the mean over all query heads.
        return state["last"][:, :, 0].mean(1, keepdim=True).expand_as(view.positions)
