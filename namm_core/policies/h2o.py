"""H2O (Zhang et al., arXiv 2306.14048): half the budget for heavy hitters, half for the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.policy import Scoring
from namm_core.protocols import State, View


@dataclass
class H2O(Scoring):
    """Keeps the newest tokens and those with the most attention accumulated over all queries so far."""

    settings = (
        {},
        {"recent": 0.25},
        {"sinks": 4},
        {"over": "layer"},
        {"over": "layer", "recent": 0.25, "sinks": 4},
        {"whole_layers": 2},
    )
    recent: int | float = 0.5
    """Newest tokens that always stay, as a share of the budget (the paper's is a half), or in tokens (int)."""
    per_query: bool = False
    """Whether what a token received is divided by the queries that could see it, which older tokens had more of."""
    needs_attention = True

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """`received` (rows, kv_heads, 1, 0), float32: attention that each key received so far."""
        return {"received": torch.zeros(rows, heads, 1, 0, device=device)}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """Adds attention (rows, kv_heads, new, keys), summed over its queries."""
        return {"received": state["received"] + attention.sum(2, keepdim=True)}

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys): attention received so far, in all or per query."""
        received = state["received"][:, :, 0]
        return received / (view.newest[:, None, None] - view.positions + 1) if self.per_query else received
