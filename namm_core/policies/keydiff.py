"""KeyDiff (Park et al., arXiv 2504.15364): keys that resemble all others are the ones to spare."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from namm_core.policies.base import Budgeted, State, View, top


@dataclass
class KeyDiff(Budgeted):
    """Keeps the keys of least cosine similarity to the anchor, the mean of all cached keys' directions."""

    def keep(self, state: State, view: View) -> Tensor:
        directions = F.normalize(view.keys.float(), dim=-1)
        valid = (view.positions >= 0)[..., None]
        anchor = (directions * valid).sum(2, keepdim=True)  # its length does not matter to a cosine
        return top(-F.cosine_similarity(directions, anchor, dim=-1), view, self.tokens(view))
