"""The six kinds of plug-in: where each stands, and how one is found by its name.

Run as a program it looks up every plug-in there is, or with a folder's path those that the folder adds, and prints the
ones that cannot be found: `python -m tests.plug_in_kinds [FOLDER]`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

NEWCOMERS = Path(__file__).parent / "newcomers"
"""A plug-in folder outside the packages, with one file of each kind."""


class Kind(NamedTuple):
    """A kind of plug-in."""

    folder: str
    """Its sub-folder in a plug-in folder."""
    package: str
    """Where our own stand."""
    find: Callable[[str], Any]
    """Returns the plug-in of a name; raises ValueError where there is none."""


def kinds() -> dict[str, Kind]:
    """All kinds of plug-in, by what the table *to add X* calls them."""
    from namm_core import plugins, policies
    from namm_core.config import FEATURES
    from namm_core.scoring import scorer
    from orchestrator.search import lookup
    from workers import targets
    from workers.tasks.loading import find

    return {
        "policy": Kind("policies", "namm_core.policies", policies.named),
        "scorer": Kind("scorers", "namm_core.scoring.scorers", scorer.find),
        "feature": Kind("features", FEATURES, lambda name: plugins.find_class(FEATURES, name, "feature")),
        "task source": Kind("sources", "workers.tasks.sources", find),
        "target": Kind("targets", "workers.targets", targets.find),
        "search": Kind("searches", "orchestrator.search.algorithms", lookup.named),
    }


def furniture() -> Iterator[str]:
    """Files in our plug-in folders that are no plug-ins."""
    for kind, place in kinds().items():
        for module in pkgutil.iter_modules(importlib.import_module(place.package).__path__):
            yield from _missing(kind, place, module.name)


def missing(folder: Path) -> Iterator[str]:
    """Files of a plug-in folder that are not found once it was added; kinds that it has no file of."""
    from orchestrator import plugins

    plugins.add([str(folder)])
    for kind, place in kinds().items():
        names = [path.stem for path in sorted((folder / place.folder).glob("*.py"))]
        if len(names) != 1:
            yield f"a {kind} takes {len(names)} files: {', '.join(names)}"
        for name in names:
            yield from _missing(kind, place, name)


def _missing(kind: str, place: Kind, name: str) -> Iterator[str]:
    try:
        place.find(name)
    except ValueError as error:
        yield f"{place.package}.{name} is no {kind}: {error}"


if __name__ == "__main__":
    print(*(missing(Path(sys.argv[1])) if sys.argv[1:] else furniture()), sep="\n", end="")
