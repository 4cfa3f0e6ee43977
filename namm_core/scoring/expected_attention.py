"""What queries that are still to come should look at, in closed form (Devoto et al., arXiv 2510.00636).

Queries before rotation are taken as Gaussian; their mean and covariance so far, turned by the mean rotation of the
next positions, give each key's expected attention. Where the rotation is not known (`namm_core.rotary`), queries are
taken as they come, which leaves out that the future lies at other positions. Knows no policy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from namm_core.protocols import Entries, State, View
from namm_core.rotary import Rotary, turn


def gathered(summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None, sinks: int) -> State:
    """Count (rows,), mean (rows, heads, size) and scatter (rows, heads, size, size) of all queries so far.

    Arguments as in `Policy.summarise`; sinks: first tokens, whose queries lie apart from all others and are left out.
    """
    queries = queries.float()
    if rotary is not None:
        queries = rotary.unrotate(queries, positions.clamp(min=0)[:, None])
    taken = (positions >= sinks) & (positions >= 0)
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


def expected(view: View, sinks: int, future: int) -> Tensor:
    """(rows, kv_heads, keys): expected attention, mean over each query group; it adds up to 1 over a head.

    The first `sinks` get none of it; future: next positions over which the rotation is averaged.
    """
    sunk = (view.positions < sinks) | (view.positions < 0)
    mean, covariance = _future_queries(view, future)
    rows, heads, size = mean.shape
    kv_heads = view.keys.shape[1]
    mean, covariance = (t.unflatten(1, (kv_heads, heads // kv_heads)) for t in (mean, covariance))
    keys, attention = view.keys.float() * view.scaling, torch.zeros_like(view.positions, dtype=torch.float32)
    for group in range(heads // kv_heads):  # one at a time: products are as large as the keys
        turned = keys @ covariance[:, :, group]
        # log E[exp(q.k)] = mu.k + k' Sigma k / 2
        logits = (keys @ mean[:, :, group, :, None])[..., 0] + (turned * keys).sum(-1) / 2
        attention = attention + logits.masked_fill(sunk, torch.finfo(logits.dtype).min).softmax(-1)
    return attention / (heads // kv_heads)


def raised(attention: Tensor, view: Entries, floor: float) -> Tensor:
    """(rows, kv_heads, keys): expected attention plus `floor` times its mean over what each head holds."""
    held = (view.positions >= 0).sum(-1, keepdim=True).clamp(min=1)
    return attention + floor / held


def _future_queries(view: View, future: int) -> tuple[Tensor, Tensor]:
    """Mean (rows, heads, size) and covariance (rows, heads, size, size) of the queries to come."""
    mean = view.summary["mean"]
    covariance = view.summary["scatter"] / view.summary["count"].clamp(min=1)[:, None, None, None]
    if view.rotary is None:
        return mean, covariance
    positions = view.newest[:, None] + torch.arange(1, future + 1, device=mean.device)
    cos, sin = (t.mean(1)[:, None] for t in view.rotary.angles(positions))  # R, the mean rotation
    covariance = turn(covariance, cos[:, None], sin[:, None]).transpose(2, 3)  # (Sigma R')' = R Sigma
    return turn(mean, cos, sin), turn(covariance, cos[:, None], sin[:, None])
