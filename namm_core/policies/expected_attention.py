"""Expected attention (Devoto et al., arXiv 2510.00636): what queries yet to come would attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.policies.base import Budgeted, State, View, top
from namm_core.rotary import turn


@dataclass
class ExpectedAttention(Budgeted):
    """Keeps the keys of highest expected attention times the norm of their value.

    Queries are taken as normal, with the mean and covariance of all queries so far before rotary embedding, rotated to
    the next `future` positions on average (equations 4 to 9). Statistics run on in decode.
    """

    future: int = 512
    """Positions to come over which the rotation is averaged."""
    sinks: int = 4
    """First tokens that always stay, and whose queries do not count; fewer where the budget has no room for them."""
    epsilon: float = 0.0
    """Added to the expected attention before it is weighted by the value's norm."""
    needs_queries = True

    def summarise(self, summary: State, queries: Tensor, positions: Tensor) -> State:
        counted = (positions >= self.sinks)[:, None, :, None]
        queries = torch.where(counted, queries.double(), 0.0)
        fresh = {
            "count": counted.sum((1, 2, 3)).double(),
            "sum": queries.sum(2),
            "products": torch.matmul(queries.transpose(2, 3), queries),
        }
        return {name: summary[name] + t if summary else t for name, t in fresh.items()}

    def keep(self, state: State, view: View) -> Tensor:
        mean, covariance = self._future_queries(view)
        rows, kv_heads, _, size = view.keys.shape
        keys = view.keys.float()
        mean = mean.view(rows, kv_heads, -1, size)
        covariance = covariance.view(rows, kv_heads, -1, size, size)
        # E[exp(q.k / sqrt d)] = exp(mu.k / sqrt d + k' Sigma k / 2d)
        expected = torch.einsum("rhkd,rhgd->rhgk", keys, mean) / size**0.5
        expected += torch.einsum("rhkd,rhgde,rhke->rhgk", keys, covariance, keys) / (2 * size)
        valid = view.positions >= 0
        attention = expected.masked_fill(~valid[:, :, None], -torch.inf).softmax(-1).mean(2)
        scores = (attention + self.epsilon) * view.values.float().norm(dim=-1)
        tokens = self.tokens(view)
        sinks = view.positions < (tokens - 1).clamp(max=self.sinks)
        return top(scores.masked_fill(sinks, torch.inf), view, tokens)

    def _future_queries(self, view: View) -> tuple[Tensor, Tensor]:
        """Mean (rows, heads, size) and covariance (rows, heads, size, size) of queries at positions to come."""
        count = view.summary["count"].clamp(min=1)[:, None, None]
        mean = view.summary["sum"] / count
        covariance = view.summary["products"] / count[..., None] - mean[..., None] * mean[..., None, :]
        mean, covariance = mean.float(), covariance.float()
        if view.rotary is None:
            return mean, covariance
        cos, sin = (t[:, None] for t in view.rotary.mean(view.newest + 1, self.future))
        mean = turn(mean, cos, sin)
        cos, sin = cos[:, :, None], sin[:, :, None]
        return mean, turn(turn(covariance, cos, sin).transpose(2, 3), cos, sin)
