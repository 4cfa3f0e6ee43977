"""TOVA (Oren et al., arXiv 2401.06104): what the newest query attends to least goes first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.policies.base import Budgeted, State, View, top


@dataclass
class TOVA(Budgeted):
    """Keeps the keys with the most attention of the newest query, averaged over the heads of a layer.

    So all heads of a layer hold the same tokens. Updated every interval instead of at every token.
    """

    needs_attention = True

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        return {"newest": torch.zeros(rows, heads, 1, 0, device=device)}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        newest = attention[:, :, -1:]
        if all(counts):
            return {"newest": newest.clone()}
        fresh = torch.tensor(counts, device=attention.device) > 0  # a row without new tokens keeps what it saw
        return {"newest": torch.where(fresh[:, None, None, None], newest, state["newest"])}

    def keep(self, state: State, view: View) -> Tensor:
        scores = state["newest"][:, :, 0].mean(1, keepdim=True)
        return top(scores.expand(view.positions.shape), view, self.tokens(view))
