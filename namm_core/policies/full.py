"""Keeps everything: the full cache, through the same attention as every other policy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policy import BasePolicy
from namm_core.protocols import State, View


@dataclass
class Full(BasePolicy):
    """The full cache."""

    update_interval: int = 512
    """Tokens between two updates."""

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: every token."""
        return view.positions >= 0
