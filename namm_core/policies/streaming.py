"""StreamingLLM (Xiao et al., arXiv 2309.17453): attention sinks and a window of the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policies.base import Budgeted, State, View, newest_tokens


@dataclass
class Streaming(Budgeted):
    """Keeps the first `sinks` tokens and the newest ones."""

    sinks: int = 4
    """First tokens that always stay; fewer where the budget has no room for them beside the newest."""

    def keep(self, state: State, view: View) -> Tensor:
        tokens = self.tokens(view)
        sinks = (tokens - 1).clamp(max=self.sinks)
        return newest_tokens(view, tokens - sinks) | (view.positions < sinks)
