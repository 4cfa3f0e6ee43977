"""Plug-ins from outside this repository: which folders hold them, and making them known.

A plug-in folder has sub-folders named after what their files are: `policies`, `scorers`, `features`, `sources`,
`targets`. Their files are then found by name, exactly as our own are (`namm_core.plugins`). Each process that uses
plug-ins has to add them: they belong to the job's configuration. Knows nothing of what plug-ins do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from namm_core.plugins import extend

PACKAGES = {
    "policies": "namm_core.policies",
    "scorers": "namm_core.scoring.scorers",
    "features": "namm_core.scoring.features",
    "sources": "workers.tasks.sources",
    "targets": "workers.targets",
}
"""Sub-folders of a plug-in folder, and the package that each one's files belong to."""
GROUP = "namm.plugins"
"""Installed packages that name themselves in this group of entry points are plug-in folders too."""


def add(plugins: Sequence[str], packages: Mapping[str, str] = PACKAGES) -> None:
    """Makes plug-ins known to this process; adding the same ones again changes nothing.

    plugins: folders, or importable packages; packages: as `PACKAGES`, for floors that have more kinds of plug-in.
    Raises ValueError, one line, for what is neither, and for a file named like a plug-in that is there already.
    """
    for folder in folders(plugins):
        for kind, package in packages.items():
            if (folder / kind).is_dir():
                extend(package, folder / kind)


def folders(plugins: Sequence[str]) -> list[Path]:
    """The plug-in folders, absolute and without repetition: those named, then those of installed packages.

    Imports no plug-in. Raises ValueError, one line, for what is neither a folder nor an importable package.
    """
    found = [folder for plugin in plugins for folder in _folders(plugin, f"plugins: {plugin}")]
    for point in sorted(entry_points(group=GROUP)):
        found += _folders(point.value, f"entry point {point.name} of {GROUP}: {point.value}")
    return list(dict.fromkeys(found))


def _folders(plugin: str, where: str) -> list[Path]:
    """The folder of that path, or the folders of the package of that name; where: how a message begins."""
    if Path(plugin).is_dir():
        return [Path(plugin).resolve()]
    if all(part.isidentifier() for part in plugin.split(".")):
        try:
            spec = importlib.util.find_spec(plugin)
        except ModuleNotFoundError:  # the package around it is missing
            spec = None
        if spec is not None and spec.submodule_search_locations is not None:
            return [Path(folder).resolve() for folder in spec.submodule_search_locations]
    raise ValueError(f"{where} is neither a folder nor an importable package")
