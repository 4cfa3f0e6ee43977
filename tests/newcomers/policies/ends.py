"""Keeps both ends of a text: a policy from outside the package."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policy import Budgeted
from namm_core.protocols import State, View
from namm_core.selection import first


@dataclass
class Ends(Budgeted):
    """Keeps the first `head` tokens and, of what the budget leaves, the newest."""

    head: int = 4
    """Tokens at the beginning that stay."""

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool."""
        tokens = self.tokens(view)
        newest = view.positions > (view.newest - (tokens - self.head).clamp(min=1))[:, None, None]
        return newest | first(view, tokens.clamp(max=self.head))
