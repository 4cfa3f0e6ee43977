"""KeyDiff (Park et al., arXiv 2504.15364): keys unlike the others are the ones that get attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from namm_core.policy import Budgeted, top
from namm_core.protocols import State, View


@dataclass
class KeyDiff(Budgeted):
    """Keeps the keys least similar to the mean direction of what a head holds, keys as cached (after rotation).

    Without the paper's optional window of recent tokens; the newest token stays, as everywhere here.
    """

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: the keys of lowest cosine to the mean direction of their head."""
        directions = F.normalize(view.keys.float(), dim=-1).masked_fill(view.positions[..., None] < 0, 0.0)
        anchor = directions.sum(2, keepdim=True)  # n times mu(K^) = (1/n) sum k_i / |k_i|; its length is of no account
        scores = -F.cosine_similarity(directions, anchor, dim=-1)  # s_i = -cos(mu(K^), k_i)
        return top(scores, view, self.tokens(view))
