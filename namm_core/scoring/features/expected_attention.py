"""What queries that are still to come should look at (Devoto et al., arXiv 2510.00636)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from namm_core.scoring.base_feature import BaseFeature

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.config import NammConfig
    from namm_core.protocols import Held, State
    from namm_core.rotary import Rotary

FUTURE = 512
"""Next positions over which the rotation is averaged, as the policy has it."""
FLOOR = 2.5
"""Added to the expected attention, in units of its mean over what is held: it means the same at every length."""
LEAST = 1e-7
"""The same for the second number, in which values play no part."""


class ExpectedAttention(BaseFeature):
    """Two numbers, standardised logarithms: the policy's score (with `floor`, without `epsilon`), and the expected
    attention alone."""

    needs_queries = True
    rules = {"expected_attention": 1.0}

    def width(self, config: NammConfig) -> int:
        """Two numbers; rules go by the first."""
        return 2

    def summarise(
        self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None, config: NammConfig
    ) -> State:
        """Count, mean and scatter of all queries so far. See `Policy.summarise`."""
        from namm_core.scoring.expected_attention import gathered

        return gathered(summary, queries, positions, rotary, config.sinks)

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, 2)."""
        import torch

        from namm_core.scoring.expected_attention import expected, raised
        from namm_core.scoring.standardising import standardised

        attention = expected(held.seen, held.config.sinks, FUTURE)
        policy = raised(attention, held.seen, FLOOR) * held.values.float().norm(dim=-1).clamp(min=1e-6)
        return torch.stack([standardised(x.log(), held) for x in (policy, attention + LEAST)], dim=-1)
