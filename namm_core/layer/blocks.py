"""How one forward call is cut into blocks that end where a memory is updated.

Every row counts its own real tokens: an update follows right after the token that makes the count a multiple of
the interval, whichever side the padding is on (docs/memory.md 1). Knows nothing of keys, attention or policies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Some new tokens of each row; at most one update follows."""

    fed: list[int]
    """Tokens of each row before this block."""
    counts: list[int]
    """Tokens of each row in this block."""
    due: list[bool]
    """Rows whose memory is updated after this block."""
    columns: slice | Tensor
    """Columns of the forward call: a slice that serves all rows, or (rows, new) int64, right-aligned."""

    @property
    def alike(self) -> bool:
        """Whether all rows take the same columns, so that no blank tokens exist."""
        return isinstance(self.columns, slice)

    @property
    def new(self) -> int:
        """Width of the block: the most tokens that a row has in it."""
        return max(self.counts)

    def valid(self, device: torch.device) -> Tensor:
        """(rows, new) bool, False for blank tokens in front of shorter rows."""
        counts = torch.tensor(self.counts, device=device)
        return torch.arange(self.new, device=device) >= self.new - counts[:, None]

    def positions(self, device: torch.device) -> Tensor:
        """(rows, new) int64 true positions, -1 for blank tokens."""
        if self.alike:
            return torch.arange(self.fed[0], self.fed[0] + self.new, device=device).expand(len(self.fed), -1)
        last = torch.tensor([f + c for f, c in zip(self.fed, self.counts, strict=True)], device=device)
        positions = last[:, None] - self.new + torch.arange(self.new, device=device)
        return positions.masked_fill(~self.valid(device), -1)

    def take(self, x: Tensor) -> Tensor:
        """The block's tokens of x (rows, heads, tokens, size)."""
        if isinstance(self.columns, slice):
            return x[:, :, self.columns]
        index = self.columns.to(x.device)[:, None, :, None]
        return x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3]))

    def put(self, out: Tensor, x: Tensor) -> None:
        """Writes the block's results x (rows, new, heads, size) into out (rows, tokens, heads, size)."""
        if isinstance(self.columns, slice):
            out[:, self.columns] = x
            return
        valid = self.valid(x.device)
        row = torch.arange(len(self.counts), device=x.device)[:, None].expand_as(valid)
        out[row[valid], self.columns.to(x.device)[valid]] = x[valid]


def plan(fed: list[int], tokens: int, real: Tensor | None, interval: int) -> list[Block]:
    """Blocks of one forward call of `tokens` columns.

    fed: tokens of each row so far; real: (rows, tokens) bool, False for padding, or None when there is none.
    """
    if real is None or bool(real.all()):
        if len(set(fed)) == 1:
            return _plan_alike(fed, tokens, interval)
        columns = torch.arange(tokens).expand(len(fed), tokens)
        totals = [tokens] * len(fed)
    else:
        real = real.cpu()
        columns = real.int().argsort(dim=1, descending=True, stable=True)  # real tokens first, in order
        totals = real.sum(1).tolist()
    blocks = []
    fed, taken = list(fed), [0] * len(fed)
    while any(t < total for t, total in zip(taken, totals, strict=True)):
        counts = [min(total - t, interval - f % interval) for f, t, total in zip(fed, taken, totals, strict=True)]
        new = max(counts)
        index = torch.tensor(taken)[:, None] + torch.arange(new) - (new - torch.tensor(counts)[:, None])
        due = [c > 0 and (f + c) % interval == 0 for f, c in zip(fed, counts, strict=True)]
        own = columns.gather(1, index.clamp(min=0))
        taking: slice | Tensor = own
        if len(set(fed)) == 1 and len(set(counts)) == 1 and bool((own == torch.arange(new) + own[0, 0]).all()):
            taking = slice(int(own[0, 0]), int(own[0, 0]) + new)  # padding on the right, not reached yet
        blocks.append(Block(list(fed), counts, due, taking))
        fed = [f + c for f, c in zip(fed, counts, strict=True)]
        taken = [t + c for t, c in zip(taken, counts, strict=True)]
    return blocks


def _plan_alike(fed: list[int], tokens: int, interval: int) -> list[Block]:
    blocks, rows, before, start = [], len(fed), fed[0], 0
    while start < tokens:
        count = min(tokens - start, interval - before % interval)
        due = (before + count) % interval == 0
        blocks.append(Block([before] * rows, [count] * rows, [due] * rows, slice(start, start + count)))
        before, start = before + count, start + count
    return blocks
