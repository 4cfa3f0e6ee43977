"""StreamingLLM (Xiao et al., arXiv 2309.17453): attention sinks and a window of the newest tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from namm_core.policy import Budgeted, check_count
from namm_core.protocols import State, View
from namm_core.selection import reserved


@dataclass
class Streaming(Budgeted):
    """Keeps the first `sinks` tokens and the newest ones, `budget` in all."""

    settings = ({}, {"sinks": 1}, {"sinks": 16}, {"sinks": 64}, {"whole_layers": 1}, {"whole_layers": 2})
    sinks: int = 4
    """First tokens that always stay; fewer where the budget leaves no room for the newest beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sinks", self.sinks, least=0)

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: the first `sinks` and the newest tokens."""
        return reserved(view, self.tokens(view), self.sinks, recent=1.0)
