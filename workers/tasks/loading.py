"""Finding a task set by the name of its file. Knows no task.

A source is a module of the package `workers.tasks.sources` that defines one dataclass `...Config` and one class
`...Tasks(config)`, a `workers.protocols.TaskSet`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from namm_core import plugins
from namm_core.config import from_mapping
from workers.protocols import TaskSet

SOURCES = "workers.tasks.sources"
"""The package of the sources."""


def load_tasks(config: dict[str, Any]) -> TaskSet[Any]:
    """The task set of `{"source": name, **options}`.

    Raises ValueError, one line, for an unknown source, option or task, and for whatever the set itself refuses.
    """
    options = dict(config)
    settings, tasks = find(options.pop("source", None))
    return tasks(from_mapping(settings, options, "tasks"))


def find(source: Any) -> tuple[type, Callable[[Any], TaskSet[Any]]]:
    """The class of a source's options, and that of its task sets.

    Raises ValueError, one line, for an unknown source, or a file that lacks one of the two.
    """
    known = plugins.modules(SOURCES)
    if source not in known:
        near = difflib.get_close_matches(str(source), known, n=1, cutoff=0.0)[0]
        raise ValueError(f"tasks.source: unknown {source!r}; did you mean {near!r}? Known: {', '.join(known)}")
    try:
        module = plugins.load(SOURCES, source, "source")
    except ModuleNotFoundError as error:
        raise ValueError(f"tasks.source: {source} needs the package {error.name}, which is not installed") from None
    return _defined(module, "Config"), _defined(module, "Tasks")


def _defined(module: ModuleType, suffix: str) -> type:
    """The module's own class whose name ends in `suffix`."""
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__ and name.endswith(suffix):
            return value
    raise ValueError(f"tasks.source: {module.__file__} defines no class whose name ends in {suffix}")
