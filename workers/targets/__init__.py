"""What a memory can be evaluated on: one file each, with one subclass of `workers.protocols.Target`.

Imports none of them, and no torch, until one is asked for.
"""

from __future__ import annotations

from typing import Any

from namm_core import plugins
from workers.protocols import Target


def names() -> tuple[str, ...]:
    """Names of all targets, in alphabetical order; imports none of them."""
    return tuple(plugins.modules(__name__))


def find(name: str) -> type[Target[Any]]:
    """The class of a target. Raises ValueError, one line, for an unknown one or a package that it lacks."""
    if name not in names():
        raise ValueError(f"target: unknown {name!r}; known: {', '.join(names())}")
    try:
        module = plugins.load(__name__, name, "target")
    except ModuleNotFoundError as error:
        raise ValueError(f"target {name} needs the package {error.name}, which is not installed") from None
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Target) and value.__module__ == module.__name__:
            return value
    raise ValueError(f"target {name}: {module.__file__} defines no subclass of Target")
