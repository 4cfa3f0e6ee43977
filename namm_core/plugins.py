"""Plug-in packages: every file in one is a plug-in, and is found by its name.

A package may be spread over several folders: Python looks for its modules in each folder of its `__path__`. A folder
of files from outside is added to that list, and its files are then found exactly as our own are. Knows nothing of
what plug-ins do, and imports none of them to list their names.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


def modules(package: str) -> list[str]:
    """Names of all plug-ins of a package, in alphabetical order, without importing them.

    package: its dotted name, such as `namm_core.policies`. Names that begin with an underscore are no plug-ins.
    """
    return _names(importlib.import_module(package).__path__)


def extend(package: str, folder: Path) -> None:
    """Adds the files of a folder to a plug-in package; a folder that was added before is left as it is.

    Raises ValueError, one line, when there is no such folder, or when one of its files has the name of a plug-in that
    the package has already.
    """
    folder = Path(folder).resolve()
    path = importlib.import_module(package).__path__
    if str(folder) in (str(Path(known).resolve()) for known in path):
        return
    if not folder.is_dir():
        raise ValueError(f"plug-ins for {package}: there is no folder {folder}")
    for name in _names([str(folder)]):
        if name in _names(path):
            raise ValueError(f"{folder / name}.py: {package} has a {name} already; give the file another name")
    path.append(str(folder))
    importlib.invalidate_caches()


def check(package: str, name: str, kind: str) -> None:
    """Raises ValueError, one line, unless the package has a plug-in of that name; says which name is nearest.

    kind: what such a plug-in is called in the message, such as `policy`.
    """
    known = modules(package)
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown {kind} {name!r}; did you mean {near!r}? Known: {', '.join(known)}")


def load(package: str, name: str, kind: str) -> ModuleType:
    """The module of the plug-in `name`, imported at its first use. Raises ValueError as `check` does."""
    check(package, name, kind)
    return _imported(package, name)


def find_class(package: str, name: str, kind: str) -> type:
    """The class in the plug-in `name` that is called as its file is, underscores and case aside.

    Raises ValueError, one line, as `check` does, and where the file holds no such class.
    """
    for key, value in vars(load(package, name, kind)).items():
        if isinstance(value, type) and plain(key) == plain(name):
            return value
    raise ValueError(f"unknown {kind} {name!r}: {package.replace('.', '/')}/{name}.py holds no class of that name")


def plain(name: str) -> str:
    """A name without underscores, in lower case: the same for a file and for its class."""
    return name.replace("_", "").lower()


def _imported(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{name}")


def _names(path: Iterable[str]) -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(path) if not (m.ispkg or m.name.startswith("_")))
