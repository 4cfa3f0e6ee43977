"""Plug-ins from outside this repository, on the head node's side: searches, besides what workers add.

A plug-in folder may have a sub-folder `searches`, whose files are found by name exactly as our own searches are.
Knows nothing of what plug-ins do.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.search.lookup import PACKAGE
from workers import plugins as of_workers

PACKAGES = {**of_workers.PACKAGES, "searches": PACKAGE}
"""Sub-folders of a plug-in folder, and the package that each one's files belong to."""


def add(plugins: Sequence[str]) -> None:
    """Makes plug-ins known to this process; adding the same ones again changes nothing.

    plugins: folders, or importable packages; those that are installed are added too. Raises ValueError, one line, for
    what is neither, and for a file named like a plug-in that is there already.
    """
    of_workers.add(plugins, PACKAGES)
