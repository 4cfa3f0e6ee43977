"""A run folder while its job is set up: reserved for one live job, and left as it was found if the job is refused.

Knows nothing of what the files say, but that a journal without results is nobody's.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from orchestrator.storage.journal import FILE, Lock, unused


class Reserved:
    """Makes a run folder, locks it, and on leaving unlocks it; a new job's is taken away again until it is `keep`-ed.

    fresh: whether the job is a new one, to which a journal with results is no place. Raises ValueError, one line, where
    the folder cannot be written, is in use by a live job, or holds a run.
    """

    def __init__(self, folder: Path, fresh: bool) -> None:
        self._folder, self._fresh = folder, fresh
        self._kept = not fresh

    def __enter__(self) -> Reserved:
        folder = self._folder
        self._made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        """Folders that this job makes, the innermost first."""
        self._found = set(os.listdir(folder)) if folder.is_dir() else set()
        if self._fresh and folder.exists() and not unused(folder):
            raise ValueError(f"{folder} exists: continue it with --resume, or choose another name (name=...)")
        try:
            make_writable(folder)
            self._lock = Lock(folder)
        except BaseException:
            self._clear()
            raise
        if self._fresh:
            (folder / FILE).unlink(missing_ok=True)
        return self

    def keep(self) -> None:
        """The job is set up: what is in the folder stays."""
        self._kept = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and not self._kept:
            self._clear()
        self._lock.close()

    def _clear(self) -> None:
        """Removes what this job brought."""
        with suppress(OSError):
            for path in self._folder.iterdir():
                if path.name not in self._found:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for folder in self._made:
                folder.rmdir()


def make_writable(folder: Path) -> None:
    """Makes the run folder. Raises ValueError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"run folder {folder.absolute()} cannot be written ({error.strerror}); start in another folder"
        ) from None
