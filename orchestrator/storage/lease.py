"""Who may write at a URL. Knows nothing of what is written there."""

from __future__ import annotations

import functools
import json
import logging
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

from orchestrator.storage.object_store import Refused, Store

logger = logging.getLogger(__name__)

OWNER = "owner.json"


class Lost(Exception):
    """Another job has taken the lease; one line says which."""


class Lease:
    """The right to write at a URL: the file `owner.json` there, renewed every `beat` seconds.

    A job on another machine that has not renewed it for `dead_after` seconds counts as dead. The lease keeps two jobs
    from doing the same work twice. For moments, both may believe that they hold it; that does no harm, since what they
    write has names of its own (`remote_journal.Piece`).

    Attributes:
        renewed: when it was last written, on the monotonic clock, in seconds; -inf: look before the next write.
    """

    def __init__(self, store: Store, beat: float, dead_after: float) -> None:
        self._store, self._beat, self._dead_after = store, beat, dead_after
        self._id = uuid.uuid4().hex
        self.renewed = float("-inf")

    def take(self) -> None:
        """Takes the lease for this job.

        Raises Refused where a live job holds it, and what the store raises. May listen for 1.5 beats before it takes
        over from a job on another machine.
        """
        owner = self._read()
        if owner and self._lives(owner):
            age = max(time.time() - owner["time"], 0)
            here = owner["machine"] == _machine()
            wait = f"if that machine is gone, start again in {max(self._dead_after - age, 0):.0f} s; if not, "
            raise Refused(
                f"storage {self._store.label} is in use by a live job ({_who(owner)}, last sign of life {age:.0f} s "
                f"ago); {'' if here else wait}wait for its end, stop it, or choose another storage"
            )
        self._write()
        time.sleep(self._beat / 20)  # for whoever took it at the same moment
        owner = self._read()
        if owner is None or owner["id"] != self._id:
            other = f" ({_who(owner)})" if owner else ""
            raise Refused(f"storage {self._store.label} was taken by another job{other} just now; let one of them run")

    def renew(self) -> bool:
        """Renews the lease when a beat has passed; False where it was gone from the URL, which was then emptied.

        Raises Lost where another job has taken it, and what the store raises.
        """
        if time.monotonic() - self.renewed < self._beat:
            return True
        owner = self._read()
        if owner is None:
            self._store.check_root()
            owner = self._read()  # it may have been away and be back, with another owner
        if owner and owner["id"] != self._id:
            raise Lost(
                f"storage {self._store.label} was taken over by another job ({_who(owner)}) while this one gave no "
                "sign of life; nothing more is written there: stop this job, or go on with it under another storage"
            )
        self._write()
        return owner is not None

    def release(self) -> None:
        """Marks the lease as free. The file stays: without one, the URL would seem to have been emptied."""
        owner = self._read()
        if owner and owner["id"] == self._id:
            self._write(released=True)

    def _lives(self, owner: dict) -> bool:
        if owner["released"]:
            return False
        if owner["machine"] == _machine():
            return _runs(owner["pid"], owner["time"])
        silent = time.time() - owner["time"]
        if abs(silent) <= self._dead_after:
            return True
        # The two clocks may differ: only who says nothing while one listens is dead.
        listen = 1.5 * self._beat
        text = "storage %s: its job (%s) is silent for %.0f s; listening for %.0f s before it is taken over"
        logger.warning(text, self._store.label, _who(owner), silent, listen)
        time.sleep(listen)
        return self._read() != owner

    def _read(self) -> dict | None:
        data = self._store.read(OWNER)
        with suppress(ValueError):  # damaged
            owner = json.loads(data or b"null")
            if isinstance(owner, dict) and {"id", "host", "machine", "pid", "time", "released"} <= owner.keys():
                return owner
        return None

    def _write(self, released: bool = False) -> None:
        owner = {"id": self._id, "host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        at = time.monotonic()
        self._store.write(OWNER, json.dumps({**owner, "time": time.time(), "released": released}).encode())
        self.renewed = at


def _who(owner: dict) -> str:
    return f"process {owner['pid']} on {owner['host']}"


@functools.cache
def _machine() -> str:
    """What tells whether a process number found elsewhere means something here: this boot, this PID namespace."""
    try:
        return (
            f"{Path('/proc/sys/kernel/random/boot_id').read_text('utf-8').strip()} {os.readlink('/proc/self/ns/pid')}"
        )
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _runs(pid: int, seen: float) -> bool:
    """Whether the process that was alive at time `seen` still is; another one of the same number began later."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= seen + 5
    except psutil.NoSuchProcess:
        return False
