"""L2 norm (Devoto et al., arXiv 2406.11430): keys of low norm are the ones that get attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policy import Budgeted, top
from namm_core.protocols import State, View


@dataclass
class L2(Budgeted):
    """Keeps the `budget` keys of lowest L2 norm in each head."""

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: the keys of lowest norm."""
        return top(-view.keys.float().norm(dim=-1), view, self.tokens(view))
