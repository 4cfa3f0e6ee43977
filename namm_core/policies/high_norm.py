"""Largest key norms first: a rule of one line, the reverse of L2's, to hold others against.

No paper proposes it. It was found while measuring L2 on the small model (docs/LOG.md), where it is far ahead of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policy import Scoring
from namm_core.protocols import State, View


@dataclass
class HighNorm(Scoring):
    """Keeps the keys of highest L2 norm."""

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys): the key's norm."""
        return view.keys.float().norm(dim=-1)
