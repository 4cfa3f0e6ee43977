"""Neural Attention Memory Models: attention in, what to forget out.

No Ray, no Redis, no tasks. What `__all__` lists is for users, the rest is private. Names are imported when first used,
so that configuration can be read without torch.
"""

import importlib
from typing import Any

_HOMES = {
    "BasePolicy": "policy",
    "BaseScorer": "scoring.base_scorer",
    "Budgeted": "policy",
    "FeatureStatistics": "statistics",
    "MemoryCache": "cache",
    "Namm": "namm",
    "NammConfig": "config",
    "NammState": "namm",
    "NammStep": "namm",
    "Policy": "protocols",
    "Scorer": "protocols",
    "Scoring": "policy",
    "State": "protocols",
    "StatisticsCollector": "namm",
    "View": "protocols",
    "answer": "answering",
    "num_parameters": "scoring.scorer",
    "policies": "policies",
    "prefill": "answering",
}
"""What a user may import from here, and the module where it stands; all else is private."""
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == _HOMES[name]:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
