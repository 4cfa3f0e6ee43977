"""L2 norm (Devoto et al., arXiv 2406.11430): keys of low norm are the ones that get attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policy import Scoring
from namm_core.protocols import State, View


@dataclass
class L2(Scoring):
    """Keeps the keys of lowest L2 norm in each head. Its authors leave the first two layers whole (`whole_layers`)."""

    settings = (
        {},
        {"whole_layers": 1},
        {"whole_layers": 2},
        {"whole_layers": 2, "sinks": 4},
        {"whole_layers": 2, "over": "layer"},
        {"over": "layer", "sinks": 4},
    )

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys): the key's norm, less than 0."""
        return -view.keys.float().norm(dim=-1)
