"""Finding a task set by the name of its file. Knows no task.

A source is a module of this package that defines one `...Config` dataclass and one `...Tasks(config)` class.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

import workers.tasks.sources
from namm_core.config import from_mapping
from workers.tasks import TaskSet


def load_tasks(config: dict[str, Any]) -> TaskSet:
    """The task set of `{"source": name, **options}`. Raises ValueError for an unknown source, key or task."""
    options = dict(config)
    source = options.pop("source", None)
    names = sorted(m.name for m in pkgutil.iter_modules(workers.tasks.sources.__path__))
    if source not in names or _defined(source, "Tasks") is None:
        known = [name for name in names if _defined(name, "Tasks") is not None]
        near = difflib.get_close_matches(str(source), known, n=1, cutoff=0.0)[0]
        raise ValueError(f"tasks.source: unknown {source!r}; did you mean {near!r}? Known: {', '.join(known)}")
    return _defined(source, "Tasks")(from_mapping(_defined(source, "Config"), options, "tasks"))


def _defined(source: str, suffix: str) -> type | None:
    """The class of module `source` whose name ends in `suffix`."""
    module = importlib.import_module(f"workers.tasks.sources.{source}")
    classes = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    return next((v for v in classes if v.__name__.endswith(suffix)), None)
