"""Keeps everything: the full cache, through the same attention as every other policy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policies.base import State, Stateless, View


@dataclass
class Full(Stateless):
    """The full cache."""

    update_interval: int = 512
    """Tokens between two updates."""

    def keep(self, state: State, view: View) -> Tensor:
        return view.positions >= 0
