"""`generate` of any transformers model with a NAMM as its memory: what the `custom_generate` folder calls.

Knows nothing of files: the numbers come as text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from namm_core.cache import MemoryCache
from namm_core.config import NammConfig, from_mapping
from namm_core.namm import Namm
from namm_core.statistics import FeatureStatistics
from namm_core.support import cache_argument


def from_text(config: str, tensors: Mapping[str, str]) -> Namm:
    """The NAMM of a configuration (JSON) and of vectors (float32, little-endian, base64); statistics may be absent."""
    vectors = {
        name: torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy()) for name, text in tensors.items()
    }
    settings = json.loads(config)
    count = settings.pop("statistics.count", None)
    statistics = (
        None if count is None else FeatureStatistics(vectors["statistics.mean"], vectors["statistics.var"], count)
    )
    return Namm(from_mapping(NammConfig, settings, "the saved configuration"), vectors["theta"], statistics)


def generate_with(namm: Namm, model: PreTrainedModel, *arguments, **settings) -> Any:
    """`model.generate(*arguments, **settings)`, the NAMM deciding what its cache forgets.

    A memory that is passed in (`past_key_values`) is continued. The model's own attention is set back at the end,
    whatever happens. A memory that keeps what a budget allows wants one: `budget=0.2`, a fraction of the tokens seen
    (float), or tokens (int). Raises ValueError for another cache, or none (`use_cache=False`), and without a budget.
    """
    budget = settings.pop("budget", None)
    both = [settings.pop(name, None) for name in ("cache", "past_key_values")]  # the new and the old name of one thing
    given = next((cache for cache in both if cache is not None), None)
    if given is not None and not hasattr(given, "kept_positions"):  # of this package, or of another copy of it
        raise ValueError(
            f"the cache given is a {type(given).__name__}, which forgets nothing: leave it out, or pass the memory "
            "that an earlier answer returned"
        )
    if settings.get("use_cache") is False:
        raise ValueError("use_cache=False leaves nothing to remember: leave it out")
    if given is None and (budget is not None or namm.takes_budget):
        namm = Namm(namm.config, namm.theta, namm.statistics, budget)
    if given is None and namm.takes_budget and budget is None:
        raise ValueError("this memory keeps what a budget allows: add budget=0.2, or another fraction, or tokens")
    memory = MemoryCache(model, namm) if given is None else given
    generate: Any = model.generate
    ours = memory.attach() or given is None
    try:
        return generate(*arguments, **{cache_argument(model): memory}, **settings)
    finally:
        if ours:
            memory.detach()
