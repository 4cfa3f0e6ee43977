"""The features of a configuration, all of them: what they need, and what they give. Knows none by name."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from namm_core import plugins
from namm_core.config import FEATURES, NammConfig
from namm_core.protocols import Feature, Held, State
from namm_core.rotary import Rotary


class Features:
    """One object for each name in `config.features`. Raises ValueError, one line, for a file without its class."""

    def __init__(self, config: NammConfig) -> None:
        self._config = config
        self._all = [cast(Feature, plugins.find_class(FEATURES, name, "feature")()) for name in config.features]
        self.needs_attention = any(feature.needs_attention for feature in self._all)
        self.needs_queries = any(feature.needs_queries for feature in self._all)

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, features) float32, in the order of the configuration."""
        return torch.cat([feature.of(held).float() for feature in self._all], dim=-1)

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        """What the features make of the queries so far. See `Policy.summarise`."""
        fresh: State = {}
        for feature in self._all:
            if feature.needs_queries:
                fresh |= feature.summarise(summary, queries, positions, rotary, self._config)
        return fresh
