"""Keeps a run folder twice: where the job works, and at an fsspec URL that outlives the machine.

The job works in its local folder and never waits for the URL; a thread carries over what is new. Knows nothing of what
the files say, but for the journal, which only ever grows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from orchestrator.messages import first_line
from orchestrator.storage import files
from orchestrator.storage.lease import OWNER, Lease, Lost
from orchestrator.storage.object_store import Store
from orchestrator.storage.remote_journal import Piece, RemoteJournal

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
FILES_EVERY = 5.0
"""Seconds between two looks at the files beside the journal."""


def exists(url: str) -> bool:
    """Whether a run is kept at `url`. Raises ValueError, one line, where that cannot be found out."""
    store = Store(url)
    with store.plainly():
        return any(name == "job.yaml" or Piece.parse(name) for name in store.list())


def fetch(url: str, name: str) -> bytes | None:
    """One file of the run kept at `url` (job.yaml of a run known by its URL alone), or None. Raises ValueError."""
    store = Store(url)
    with store.plainly():
        return store.read(name)


class Mirror:
    """Makes a run folder survive the loss of its machine: restores it from a URL, then keeps the URL up to date.

    Making one takes the URL for this job and restores what the folder lacks: make it before the folder's journal is
    opened, and close it after the journal is closed. Where the two journals differ, the longer one wins, and its
    side's other files with it; a local journal that contradicts the URL's is set aside, not lost.

    Args:
        folder: the run's local one.
        url: of any protocol that fsspec has; one run, one URL.
        every: seconds between two uploads.
        beat: seconds between two signs of life at the URL.
        dead_after: seconds of silence after which a job on another machine counts as dead.
        on_lost: called, in the mirror's thread, with the line that `lost` then holds.

    Attributes:
        lost: None, or the line that says that another job took the URL; the mirror then does nothing more.

    Raises ValueError, one line, where the URL cannot be used or a live job uses it.
    """

    SLOWEST_RETRY = 30.0  # seconds

    def __init__(
        self,
        folder: Path,
        url: str,
        every: float = 1.0,
        *,
        beat: float = 10.0,
        dead_after: float = 60.0,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.lost: str | None = None
        self._folder, self._every, self._on_lost = folder, every, on_lost
        self._store = Store(url)
        root = Path(self._store.root)
        if self._store.local and root.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"storage {self._store.label} lies in the run folder {folder}: choose another place")
        self._lease = Lease(self._store, beat, dead_after)
        self._journal = RemoteJournal(self._store, folder / JOURNAL, self._renew)
        self._stamps: dict[str, tuple[int, int]] = {}  # of other files there, as the local ones were
        self._looked = float("-inf")
        self._failing = self._stopped = False
        self._asked = 0
        """Flushes asked for; `_tried` and `_done` say how many of them the thread has begun and finished."""
        self._tried = self._done = 0
        self._waiting = 0
        """Callers that wait in `flush` now."""
        self._changed = threading.Condition()
        with self._store.plainly():
            self._store.make_root()
            self._lease.take()
            try:
                self._restore()
            except BaseException:
                with suppress(Exception):
                    self._lease.release()
                raise
        self._thread = threading.Thread(target=self._work, name="storage-mirror", daemon=True)
        self._thread.start()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def behind(self) -> int:
        """Bytes of the journal that are not at the URL yet."""
        journal = self._folder / JOURNAL
        return journal.stat().st_size - self._journal.sent if journal.exists() else 0

    def flush(self, patience: float) -> bool:
        """Waits up to `patience` seconds until everything written so far is at the URL; returns whether it is."""
        with self._changed:
            self._asked += 1
            self._waiting += 1
            mine = self._asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done >= mine or self.lost or not self._thread.is_alive(), patience)
            self._waiting -= 1
            return self._done >= mine

    def close(self, patience: float = 30.0) -> bool:
        """Uploads the rest within `patience` seconds and releases the URL; returns whether everything is there."""
        if not self._thread.is_alive():
            return self.lost is None and self.behind == 0
        done = self.flush(patience)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=5.0)
        if not done and not self.lost:
            text = "storage %s lacks the last %d bytes of the journal; they are in %s, from where --resume uploads them"
            logger.warning(text, self._store.label, self.behind, self._folder)
        return done

    # Start: what the folder lacks

    def _restore(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        listing = self._store.list()
        self._store.remove(name for name in listing if name.endswith(".part"))  # a writer died
        behind = self._journal.restore(listing)
        restored = 0
        for name in filter(_carried, listing):
            path = self._folder / name
            if (behind or not path.exists()) and (data := self._store.read(name)) is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write(path, data)
                self._stamps[name] = _stamp(path)
                restored += 1
                self._renew()
        if behind or restored:
            text = "storage %s: restored a journal of %d bytes and %d other files"
            logger.info(text, self._store.label, self._journal.sent if behind else 0, restored)

    # Then: what the URL lacks

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                wait = self._every if not pause else 0.5 if self._waiting else pause
                self._changed.wait_for(lambda: self._stopped or self._asked > self._tried, wait)
                self._tried, stopped = self._asked, self._stopped
            try:
                self._upload(everything=self._tried > self._done or stopped)
                pause = 0.0
                if stopped:
                    self._lease.release()
            except Lost as error:
                return self._give_up(str(error))
            except Exception as error:  # whatever the store raises, the search goes on
                self._fail(error)
                pause = min(max(2 * pause, 0.5), self.SLOWEST_RETRY)
            else:
                self._succeed()
            if stopped:
                return

    def _upload(self, everything: bool) -> None:
        self._renew()
        self._journal.upload()
        if everything or time.monotonic() - self._looked >= FILES_EVERY:
            for path in sorted(self._folder.rglob("*")):
                name = path.relative_to(self._folder).as_posix()
                if _carried(name) and path.is_file() and not path.is_symlink():
                    self._upload_file(name, path)
            self._looked = time.monotonic()

    def _upload_file(self, name: str, path: Path) -> None:
        try:
            stamp = _stamp(path)  # before it is read: what is written meanwhile is seen the next time
            if self._stamps.get(name) == stamp:
                return
            data = path.read_bytes()
        except FileNotFoundError:
            return
        self._store.write(name, data)
        self._stamps[name] = stamp
        self._renew()

    def _renew(self) -> None:
        if not self._lease.renew():
            logger.warning("storage %s was emptied; all is uploaded again", self._store.label)
            self._journal.forget()
            self._stamps = {}

    def _fail(self, error: Exception) -> None:
        if not self._failing:
            text = "storage %s is lost (%s: %s); the run goes on, what it lacks is uploaded later"
            logger.warning(text, self._store.label, type(error).__name__, first_line(error))
        self._failing = True
        self._lease.renewed = float("-inf")  # somebody may have taken it meanwhile: look before the next write

    def _succeed(self) -> None:
        if self._failing:
            logger.warning("storage %s is back and has all", self._store.label)
        self._failing = False
        with self._changed:
            self._done = self._tried
            self._changed.notify_all()

    def _give_up(self, reason: str) -> None:
        logger.error("%s", reason)
        with self._changed:
            self.lost = reason
            self._changed.notify_all()
        if self._on_lost:
            self._on_lost(reason)


def _carried(name: str) -> bool:
    """Whether a file of the run folder is kept at the URL as it is."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") for part in parts)
    ours = name in (JOURNAL, OWNER, "lock") or parts[0] in ("journal", "left-out")
    return not (hidden or ours or name.endswith(".part"))


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
