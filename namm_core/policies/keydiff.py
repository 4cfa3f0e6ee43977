"""KeyDiff (Park et al., arXiv 2504.15364): keys unlike the others are the ones that get attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policy import Scoring
from namm_core.protocols import State, View
from namm_core.scoring.key_similarity import similarity


@dataclass
class KeyDiff(Scoring):
    """Keeps the keys least similar to the mean direction of what a head holds, keys as cached (after rotation).

    The paper's optional window of recent tokens is `recent`; the newest token stays, as everywhere here.
    """

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys): s_i = -cos(mu(K^), k_i), K^ being the directions of a head's keys."""
        return -similarity(view.keys, view.positions)
