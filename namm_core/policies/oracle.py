"""The oracle: keeps what a task knows to be relevant. An upper mark, no policy that could be deployed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from namm_core.policy import BasePolicy
from namm_core.protocols import State, View


@dataclass
class Oracle(BasePolicy):
    """Keeps each row's relevant positions (and the first `sinks`), in every layer and head."""

    relevant: list[Tensor]
    """Per row, (relevant,) int64 true positions."""
    update_interval: int = 512
    """Tokens between two updates."""
    sinks: int = 4
    """First tokens that always stay."""
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.relevant)

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: what is relevant in each row, and the first `sinks`."""
        keep = view.positions < self.sinks
        for i, row in enumerate(view.row.tolist()):
            keep[i] |= torch.isin(view.positions[i], self.relevant[row].to(view.positions.device))
        return keep
