"""Plug-ins of a job, on the head node's side: what workers add (`workers.plugins`), and searches.

A plug-in is a folder, or an importable package, with any of the sub-folders `policies`, `scorers`, `sources`,
`targets` and `searches`; a file in one is found by its name like our own. Knows nothing of what is in the files.
"""

from __future__ import annotations

from collections.abc import Sequence


def add(plugins: Sequence[str]) -> None:
    """Makes known what folders and packages bring, and those that are installed (entry points `namm.plugins`).

    Adding one again changes nothing. Raises ValueError, one line, where one is not there, or has a file named like one
    that is known already.
    """
    if plugins:
        raise ValueError("plug-ins are not read yet")
