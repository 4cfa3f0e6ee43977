"""L2 norm (Devoto et al., arXiv 2406.11430): keys of low norm are the ones that get attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policies.base import State, Stateless, View, top


@dataclass
class L2(Stateless):
    """Keeps the `budget` keys of lowest L2 norm in each head."""

    budget: Tensor | int
    """Tokens a head keeps at each update: one number, or (rows,)."""
    update_interval: int = 512
    """Tokens between two updates."""

    def __post_init__(self) -> None:
        self.rows = 1 if isinstance(self.budget, int) else len(self.budget)

    def keep(self, state: State, view: View) -> Tensor:
        return top(-view.keys.float().norm(dim=-1), view, self.budget)
