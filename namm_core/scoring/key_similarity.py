"""How alike a head's keys are: what KeyDiff (Park et al., arXiv 2504.15364) ranks by. Knows no policy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def similarity(vectors: Tensor, positions: Tensor) -> Tensor:
    """(rows, kv_heads, keys): cosine of each vector to the mean direction of those that its head holds.

    vectors: (rows, kv_heads, keys, size), as cached (keys: after rotation); positions: (rows, kv_heads, keys), padding
    -1, whose own values mean nothing.
    """
    directions = F.normalize(vectors.float(), dim=-1).masked_fill(positions[..., None] < 0, 0.0)
    mean = directions.sum(2, keepdim=True)  # n times mu(K^) = (1/n) sum k_i / |k_i|; its length is of no account
    return F.cosine_similarity(directions, mean, dim=-1)
