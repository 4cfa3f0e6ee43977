"""What `ray job submit --working-dir` would send of a folder, and whether it is too much. Sends nothing.

Ray packs what git does not ignore, and its job server takes 100 MiB; a larger package is refused (HTTP 413) after the
whole of it was read. Knows nothing of jobs.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

LIMIT = 100 * 2**20
"""Bytes that Ray's job server takes."""


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file that would be sent, by its path in the folder; none where git cannot say which they are."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    names = [name.decode("utf-8", "surrogateescape") for name in listed.split(b"\0") if name]
    return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


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
