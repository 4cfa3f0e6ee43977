"""Expected attention (Devoto et al., arXiv 2510.00636): what queries that are still to come should look at.

Queries before rotation are taken as Gaussian; their mean and covariance so far, turned by the mean rotation of the
next positions, give each key's expected attention in closed form. Where the rotation is not known
(`namm_core.rotary`), queries are taken as they come, which leaves out that the future lies at other positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from namm_core.policy import Budgeted, check_count, first, top
from namm_core.protocols import State, View
from namm_core.rotary import Rotary, turn


@dataclass
class ExpectedAttention(Budgeted):
    """Keeps the first `sinks` tokens and those of highest expected attention times the norm of their value.

    The paper weighs by the norm of the value after the output projection; here, as in its code, by the value's own.
    """

    sinks: int = 4
    """First tokens that always stay (as far as the budget has room beside the newest); their queries, which lie apart
    from all others, are left out of the statistics."""
    future: int = 512
    """Next positions over which the rotation is averaged."""
    epsilon: float = 0.01
    """Added to the expected attention, so that values count where there is next to none of it."""
    needs_queries = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sinks", self.sinks, least=0)
        check_count("future", self.future, least=1)
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon is at least 0, not {self.epsilon}")

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        """Count (rows,), mean (rows, heads, size) and scatter (rows, heads, size, size) of all queries so far."""
        queries = queries.float()
        if rotary is not None:
            queries = rotary.unrotate(queries, positions.clamp(min=0)[:, None])
        taken = (positions >= self.sinks) & (positions >= 0)
        weight, count = taken[:, None, :, None].float(), taken.sum(1).float()
        mean = (queries * weight).sum(2) / count.clamp(min=1)[:, None, None]
        centred = (queries - mean[:, :, None]) * weight
        scatter = centred.transpose(2, 3) @ centred
        if summary:  # two groups merged (Chan et al. 1979), so that no block is needed twice
            total = summary["count"] + count
            share = (count / total.clamp(min=1))[:, None, None]
            step = mean - summary["mean"]
            mean = summary["mean"] + step * share
            apart = step[..., None] * step[..., None, :] * (summary["count"][:, None, None] * share)[..., None]
            count, scatter = total, summary["scatter"] + scatter + apart
        return {"count": count, "mean": mean, "scatter": scatter}

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: the first `sinks`, then the highest scores."""
        tokens = self.tokens(view)
        sinks = (view.positions < self.sinks) | (view.positions < 0)
        mean, covariance = self._future_queries(view)
        rows, heads, size = mean.shape
        kv_heads = view.keys.shape[1]
        mean, covariance = (t.unflatten(1, (kv_heads, heads // kv_heads)) for t in (mean, covariance))
        keys, expected = view.keys.float() * view.scaling, 0.0
        for group in range(heads // kv_heads):  # one at a time: products are as large as the keys
            turned = keys @ covariance[:, :, group]
            # log E[exp(q.k)] = mu.k + k' Sigma k / 2
            logits = (keys @ mean[:, :, group, :, None])[..., 0] + (turned * keys).sum(-1) / 2
            expected = expected + logits.masked_fill(sinks, torch.finfo(logits.dtype).min).softmax(-1)
        expected = expected / (heads // kv_heads)
        scores = (expected + self.epsilon) * view.values.float().norm(dim=-1)
        sinks = first(view, (tokens - 1).clamp(max=self.sinks))
        return top(scores.masked_fill(sinks, torch.inf), view, tokens)

    def _future_queries(self, view: View) -> tuple[Tensor, Tensor]:
        """Mean (rows, heads, size) and covariance (rows, heads, size, size) of the queries to come."""
        mean = view.summary["mean"]
        covariance = view.summary["scatter"] / view.summary["count"].clamp(min=1)[:, None, None, None]
        if view.rotary is None:
            return mean, covariance
        positions = view.newest[:, None] + torch.arange(1, self.future + 1, device=mean.device)
        cos, sin = (t.mean(1)[:, None] for t in view.rotary.angles(positions))  # R, the mean rotation
        covariance = turn(covariance, cos[:, None], sin[:, None]).transpose(2, 3)  # (Sigma R')' = R Sigma
        return turn(mean, cos, sin), turn(covariance, cos[:, None], sin[:, None])
