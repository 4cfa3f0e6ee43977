"""What a memory can be evaluated on, each in a file of its own: the `Target` that a module of this package defines."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.targets.base import Target


def names() -> tuple[str, ...]:
    """All targets; imports none of them."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"))


def find(name: str) -> type[Target]:
    """The class of a target. Raises ValueError, one line, for an unknown one or a package that it lacks."""
    if name not in names():
        raise ValueError(f"target: unknown {name!r}; known: {', '.join(names())}")
    from workers.targets.base import Target  # imports torch

    try:
        module = importlib.import_module(f"workers.targets.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"target {name} needs the package {error.name}: pip install 'namm[{name}]'") from None
    found = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Target) and v is not Target]
    return next(v for v in found if v.__module__ == module.__name__)
