"""Folders that a node keeps between jobs: made by one process, whole or not at all, while the others wait.

They stand under `~/.cache/namm`, or where the environment variable NAMM_CACHE says. Knows nothing of what is in them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

PART = ".part-"
"""How the name of a folder begins that is being made."""


def root() -> Path:
    """The cache's folder, which need not exist: NAMM_CACHE, else `namm` in XDG_CACHE_HOME or `~/.cache`."""
    if given := os.environ.get("NAMM_CACHE", "").strip():
        return Path(given).expanduser().absolute()
    home = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(home) if home else Path.home() / ".cache") / "namm"


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Returns `folder`, made by `make(part)` where it does not exist yet.

    make: fills the empty folder `part` beside it, which is renamed to `folder` when it returns. Where it raises,
    nothing is left; what a killed process left is removed by the next one. Raises ValueError, one line, where the
    cache cannot be written, and whatever `make` raises.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    except OSError as error:
        raise ValueError(f"{folder.parent} cannot be written ({error.strerror}): NAMM_CACHE names another") from None
    try:
        if folder.is_dir():  # while this process waited
            return folder
        for left in folder.parent.glob(f"{PART}{folder.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f"{PART}{folder.name}-", dir=folder.parent))
        try:
            make(part)
            part.chmod(0o755)  # mkdtemp makes it private; who may read the cache is the parent folder's business
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    finally:
        lock.release()
    return folder
