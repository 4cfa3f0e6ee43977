"""H2O (Zhang et al., arXiv 2306.14048): half the budget for heavy hitters, half for the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.policies.base import State, View, top


@dataclass
class H2O:
    """Keeps the newest tokens and those with the most attention accumulated over all queries so far."""

    budget: Tensor | int
    """Tokens a head keeps at each update: one number, or (rows,)."""
    update_interval: int = 512
    """Tokens between two updates."""
    recent: float = 0.5
    """Share of the budget that goes to the newest tokens; the paper's is a half."""
    needs_attention = True
    needs_queries = False

    def __post_init__(self) -> None:
        self.rows = 1 if isinstance(self.budget, int) else len(self.budget)

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        return {"received": torch.zeros(rows, heads, 1, 0, device=device)}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        return {"received": state["received"] + attention.sum(2, keepdim=True)}

    def keep(self, state: State, view: View) -> Tensor:
        budget = self.budget
        if not isinstance(budget, int):
            budget = budget.to(view.row.device)[view.row]
        window = torch.as_tensor(budget * self.recent, device=view.newest.device).floor()
        recent = view.positions > (view.newest - window)[:, None, None]
        return top(state["received"][:, :, 0].masked_fill(recent, torch.inf), view, self.budget)
