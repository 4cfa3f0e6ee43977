"""The search: candidates, generations, faults, records. No torch at module level, no prompts' text.

What is meant for use from outside is in `__all__`; all other modules may change without notice. The names are imported
when first used, so that a program that only reads a run does not load Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.from_python import evolve
    from orchestrator.spec import JobSpec

__all__ = ["JobSpec", "evolve"]

_HOMES = {"JobSpec": "spec", "evolve": "from_python"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
