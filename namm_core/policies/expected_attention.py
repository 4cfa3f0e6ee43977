"""Expected attention (Devoto et al., arXiv 2510.00636): what queries that are still to come should look at.

How it is computed stands in `namm_core.scoring.expected_attention`, since it is a feature of learned memories, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policy import Scoring, check_count
from namm_core.protocols import State, View
from namm_core.rotary import Rotary
from namm_core.scoring.expected_attention import expected, gathered, raised


@dataclass
class ExpectedAttention(Scoring):
    """Keeps the first `sinks` tokens and those of highest expected attention times the norm of their value.

    The paper weighs by the norm of the value after the output projection; here, as in its code, by the value's own.
    """

    settings = (
        {},
        {"over": "layer"},
        {"epsilon": 0.0, "floor": 2.5},
        {"over": "layer", "epsilon": 0.0, "floor": 2.5},
        {"over": "layer", "recent": 0.1},
        {"over": "layer", "whole_layers": 1},
    )
    sinks: int = 4
    """First tokens that always stay (as far as the budget has room beside the newest); their queries, which lie apart
    from all others, are left out of the statistics."""
    future: int = 512
    """Next positions over which the rotation is averaged."""
    epsilon: float = 0.01
    """Added to the expected attention, so that values count where there is next to none of it."""
    floor: float = 0.0
    """Added to it as well, in units of its mean over the tokens held, so that it means the same at every length."""
    needs_queries = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("future", self.future, least=1)
        for name, value in (("epsilon", self.epsilon), ("floor", self.floor)):
            if not value >= 0:
                raise ValueError(f"{name} is at least 0, not {value}")

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        """Count, mean and scatter of all queries so far. See `Policy.summarise`."""
        return gathered(summary, queries, positions, rotary, self.sinks)

    def scores(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys): (expected attention + epsilon + floor / held) times the value's norm."""
        attention = raised(expected(view, self.sinks, self.future), view, self.floor) + self.epsilon
        return attention * view.values.float().norm(dim=-1)
