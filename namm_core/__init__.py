"""Neural Attention Memory Models: attention in, what to forget out.

No Ray, no Redis, no tasks. Names are imported when first used, so that configuration can be read without torch.
"""

import importlib

_HOMES = {
    "FeatureStatistics": "scoring.statistics",
    "MemoryCache": "cache",
    "Namm": "namm",
    "NammConfig": "config",
    "NammState": "namm",
    "NammStep": "namm",
    "StatisticsCollector": "namm",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
