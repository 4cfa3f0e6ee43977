"""SnapKV (Li et al., arXiv 2404.14469): the last queries vote for tokens, and neighbours are kept together.

The paper compresses a prompt once, at its end; here it is done at each update, by the last queries before it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from namm_core.policy import Scoring, check_count
from namm_core.protocols import State, View
from namm_core.selection import newest


@dataclass
class SnapKV(Scoring):
    """Keeps the newest `window` tokens and those of highest pooled attention by the queries of these tokens.

    The paper votes per query head; heads that share keys must agree, so votes are the mean over a query group.
    Raises ValueError for numbers out of range.
    """

    settings = (
        {},
        {"window": 64, "kernel": 5, "pooling": "avg"},  # its authors' code
        {"window": 16, "kernel": 5, "pooling": "avg"},
        {"over": "layer"},
        {"window": 64, "kernel": 5, "pooling": "avg", "over": "layer"},
        {"sinks": 4, "over": "layer"},
    )
    window: int = 32
    """Newest tokens that always stay (as many as the budget holds beside the sinks), and queries that vote: of them,
    those since the last update, since older ones were counted when they were new."""
    kernel: int = 7
    """Positions, odd, over which votes are pooled."""
    pooling: Literal["max", "avg"] = "max"
    """`max` as in the paper's LongBench runs, or `avg`, its code's default."""
    needs_attention = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, least=1)
        check_count("kernel", self.kernel, least=1)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {self.kernel}")
        if self.pooling not in ("max", "avg"):
            raise ValueError(f"pooling must be max or avg, not {self.pooling!r}")

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """`votes` (rows, kv_heads, 1, 0), float32: attention that each key received by voting queries."""
        return {"votes": torch.zeros(rows, heads, 1, 0, device=device)}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """Adds the voting queries of attention (rows, kv_heads, new, keys); votes begin anew after each update."""
        new, device, interval = attention.shape[2], attention.device, self.update_interval
        since = torch.tensor([f % interval for f in fed], device=device)[:, None]  # tokens since the last update
        place = since + torch.arange(new, device=device) - (new - torch.tensor(counts, device=device))[:, None]
        voting = place >= interval - self.window  # blank queries in front show no attention
        votes = torch.matmul(voting[:, None, None].to(attention.dtype), attention)  # sum of A[-window:], Listing 1
        return {"votes": votes + state["votes"] * (since > 0)[:, :, None, None]}

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys): pooled votes; infinite for the newest `window`."""
        tokens = self.tokens(view)
        room = tokens - (tokens - 1).clamp(min=0, max=self.sinks)  # beside the sinks
        window = newest(view, room.clamp(max=self.window))
        votes = state["votes"][:, :, 0].masked_fill(window, 0.0)
        return self._pooled(votes, view.positions).masked_fill(window, torch.inf)

    def _pooled(self, votes: Tensor, positions: Tensor) -> Tensor:
        """Votes pooled over neighbours in the text: what was forgotten between two keys still parts them.

        What is absent counts 0, as the zero padding of the paper's pool1d does.
        """
        half = self.kernel // 2
        around = F.pad(votes, (half, half)).unfold(-1, self.kernel, 1)
        places = F.pad(positions, (half, half), value=-1).unfold(-1, self.kernel, 1)
        around = around.masked_fill((places - positions[..., None]).abs() > half, 0.0)
        if self.pooling == "max":
            return around.amax(-1)
        # Added in order, so that keys with the same neighbours tie exactly, wherever the blanks between them stand.
        return functools.reduce(torch.add, around.unbind(-1)) / self.kernel
