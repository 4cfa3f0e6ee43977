"""H2O (Zhang et al., arXiv 2306.14048): half the budget for heavy hitters, half for the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.policy import Budgeted, newest, top
from namm_core.protocols import State, View


@dataclass
class H2O(Budgeted):
    """Keeps the newest tokens and those with the most attention accumulated over all queries so far."""

    recent: float = 0.5
    """Share of the budget that goes to the newest tokens; the paper's is a half."""
    needs_attention = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent is a share of the budget, from 0 to 1, not {self.recent}")

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """`received` (rows, kv_heads, 1, 0), float32: attention that each key received so far."""
        return {"received": torch.zeros(rows, heads, 1, 0, device=device)}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """Adds attention (rows, kv_heads, new, keys), summed over its queries."""
        return {"received": state["received"] + attention.sum(2, keepdim=True)}

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: the newest `recent` of the budget, then the most received."""
        tokens = self.tokens(view)
        recent = newest(view, (tokens * self.recent).floor())
        return top(state["received"][:, :, 0].masked_fill(recent, torch.inf), view, tokens)
