"""SnapKV (Li et al., arXiv 2404.14469): the last queries of the text vote for what came before them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from namm_core.policies.base import Budgeted, State, View, newest_tokens, top


@dataclass
class SnapKV(Budgeted):
    """Keeps the observation window and the keys with the most attention from it, pooled over their neighbours.

    The paper compresses once, after the prompt; here every update does, so that it works online. Window, kernel and
    pooling are those of its LongBench runs.
    """

    window: int = 32
    """Newest queries that vote, and newest tokens that stay; fewer where the budget is smaller."""
    kernel: int = 7
    """Neighbours that share a vote; odd."""
    needs_attention = True

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        held = torch.float32 if dtype.itemsize >= 4 else torch.float16
        return {"recent": torch.zeros(rows, heads, self.window, 0, device=device, dtype=held)}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        recent, new = state["recent"], attention.shape[2]
        both = torch.cat([recent, attention.to(recent.dtype)], dim=2)
        if min(counts) == new:
            return {"recent": both[:, :, -self.window :].clone()}
        # Blank queries stand between a row's old and new ones: take the last `window` that are real.
        back = torch.arange(self.window - 1, -1, -1, device=recent.device)
        count = torch.tensor(counts, device=recent.device)[:, None]
        index = torch.where(back < count, self.window + new - 1 - back, self.window - 1 - (back - count))
        return {"recent": both.gather(2, index[:, None, :, None].expand_as(recent))}

    def keep(self, state: State, view: View) -> Tensor:
        tokens = self.tokens(view)
        votes = state["recent"].float().sum(2).masked_fill(view.positions < 0, 0.0)
        votes = F.max_pool1d(votes, self.kernel, stride=1, padding=self.kernel // 2)
        window = newest_tokens(view, tokens.clamp(max=self.window))
        return top(votes.masked_fill(window, torch.inf), view, tokens)
