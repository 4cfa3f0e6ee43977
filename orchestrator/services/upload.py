"""What `ray job submit --working-dir` would send of a folder, and whether it is too much. Sends nothing.

Ray packs what git does not ignore, and its job server takes 100 MiB; a larger package is refused (HTTP 413) after the
whole of it was read. Knows nothing of jobs.
"""

from __future__ import annotations

import os
from pathlib import Path

LIMIT = 100 * 2**20
"""Bytes that Ray's job server takes."""


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file that would be sent, by its path in the folder: of a checkout, all that its `.gitignore` does
    not name; none of a folder that is no checkout."""
    from pathspec import GitIgnoreSpec

    if not (folder / ".git").exists():
        return {}
    try:
        lines = (folder / ".gitignore").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    ignored = GitIgnoreSpec.from_lines([*lines, ".git"])
    found = {}
    for at, folders, files in os.walk(folder):
        place = Path(at).relative_to(folder)
        folders[:] = [name for name in folders if not ignored.match_file(f"{(place / name).as_posix()}/")]
        for name in files:
            path = (place / name).as_posix()
            if not ignored.match_file(path) and (folder / path).is_file():
                found[path] = (folder / path).stat().st_size
    return found


def too_much(folder: Path, limit: int = LIMIT) -> str | None:
    """One line that says what to do where the folder is too large to be submitted; else None."""
    found = sizes(folder)
    if (total := sum(found.values())) <= limit:
        return None
    largest = max(found, key=lambda name: found[name])
    return (
        f"this folder has {total / 2**20:,.0f} MiB that ray job submit would send, and Ray takes {limit / 2**20:,.0f}: "
        f"move data out of it, or have git ignore it (largest: {largest}, {found[largest] / 2**20:,.0f} MiB); "
        "where data belongs on a cluster is said in docs/operations.md"
    )
