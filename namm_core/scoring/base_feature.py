"""For writers of features: a base with a default for every member of `Feature` but `width` and `of`.

Imports no torch: a feature's file is imported where `theta` is only counted. Knows no feature by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from namm_core.config import NammConfig
    from namm_core.protocols import Held, State
    from namm_core.rotary import Rotary


class BaseFeature:
    """Base of features; see `namm_core.protocols.Feature`."""

    needs_attention: bool = False
    needs_queries: bool = False
    rules: dict[str, float] = {}

    def width(self, config: NammConfig) -> int:
        """One number a token."""
        return 1

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, width); every feature must say it."""
        raise NotImplementedError(f"{type(self).__name__} has no method of(held)")

    def summarise(
        self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None, config: NammConfig
    ) -> State:
        """The same summary."""
        return summary
