"""StreamingLLM (Xiao et al., arXiv 2309.17453): attention sinks and a window of the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policies.base import State, Stateless, View


@dataclass
class Streaming(Stateless):
    """Keeps the first `sinks` tokens and the newest ones, `budget` in all."""

    budget: Tensor | int
    """Tokens a head keeps at each update: one number, or (rows,)."""
    update_interval: int = 512
    """Tokens between two updates."""
    sinks: int = 4
    """First tokens that always stay."""

    def __post_init__(self) -> None:
        self.rows = 1 if isinstance(self.budget, int) else len(self.budget)

    def keep(self, state: State, view: View) -> Tensor:
        budget = self.budget
        if not isinstance(budget, int):
            budget = budget.to(view.row.device)[view.row][:, None, None]
        recent = view.positions > view.newest[:, None, None] - (budget - self.sinks)
        return recent | (view.positions < self.sinks)
