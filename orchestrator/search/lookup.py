"""Finds a search by its name: the class that runs it, and the dataclass that configures it.

Imports an algorithm only when it is asked for. Knows nothing of what any of them does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from namm_core import plugins
from namm_core.config import from_fields

if TYPE_CHECKING:
    from orchestrator.protocols import Search
    from orchestrator.search.base import AskAndTell
    from orchestrator.search.config import SearchConfig

PACKAGE = "orchestrator.search.algorithms"
"""Where searches are: each file of it is one. A plug-in's folder `searches` is added to it."""
DEFAULT = "cma_es"
"""The algorithm of a job that names none."""


def names() -> list[str]:
    """Names of all searches, in alphabetical order; imports none of them."""
    return plugins.modules(PACKAGE)


def named(name: str) -> type[AskAndTell]:
    """The search in `<name>.py`. Raises ValueError, one line, for an unknown name or a file without its class."""
    module = plugins.load(PACKAGE, name, "search")
    from orchestrator.search.base import AskAndTell

    for key, value in vars(module).items():
        if key.lower() == name.replace("_", "").lower() and isinstance(value, type) and issubclass(value, AskAndTell):
            return value
    raise ValueError(f"search {name!r}: {module.__file__} holds no class of that name that is an AskAndTell")


def read(plain: Any, where: str) -> SearchConfig:
    """The configuration of the algorithm that `plain` names in `algorithm`, `cma_es` where it names none.

    Raises ValueError, one line, for an unknown algorithm (names the nearest one) and for an option that it does not
    have (says which algorithm has it, else names the nearest option).
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"{where}: expected a mapping of settings, found {type(plain).__name__}")
    name = str(plain.get("algorithm", DEFAULT))
    try:
        search = named(name)
    except ValueError as error:
        raise ValueError(f"{where}.algorithm: {error}") from None
    mine = _options(search)
    for option in plain:
        owners = [other for other in names() if option not in mine and option in _options(named(other))]
        if owners:
            raise ValueError(f"{where}: {option} is an option of {', '.join(owners)}; {name} has: {', '.join(mine)}")
    return from_fields(search.Config, {**plain, "algorithm": name}, where)


def default() -> SearchConfig:
    """The configuration of a job that says nothing of its search."""
    return read({}, "search")


def started(config: SearchConfig, start: np.ndarray) -> Search:
    """A search as `config` says, its first mean `start`: (N,) finite numbers. Raises ValueError for any other start."""
    return named(config.algorithm)(config, start)


def _options(search: type[AskAndTell]) -> list[str]:
    return [field.name for field in dataclasses.fields(search.Config)]
