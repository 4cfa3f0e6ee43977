"""The journal at a URL: a chain of immutable pieces, each named by where it begins, its length and its digest.

Object stores have neither append nor rename. With such names a torn piece is recognised, and two writers cannot
overwrite each other. Knows that the journal consists of lines that are only ever appended, not what they say.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.storage.object_store import Refused, Store

logger = logging.getLogger(__name__)

PIECE_BYTES = 8 * 2**20
"""Largest size of a piece: no transfer keeps the lease from being renewed for long."""
MERGE_EVERY = 256
"""Small pieces in a row that are put together into one: a job of days makes hundreds of objects, not 100,000."""


@dataclass(frozen=True, order=True)
class Piece:
    """Bytes `start` to `end` of the journal, whole lines, kept as one object."""

    start: int
    """Offset of the first byte."""
    length: int
    """Bytes."""
    digest: str
    """Of the content."""

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.start + self.length

    @property
    def name(self) -> str:
        """Of its object at the URL."""
        return f"journal/{self.start:012d}-{self.length:09d}-{self.digest}.jsonl"

    @staticmethod
    def of(start: int, data: bytes) -> Piece:
        """The piece that has this content and begins at offset `start`."""
        return Piece(start, len(data), hashlib.blake2b(data, digest_size=8).hexdigest())

    @staticmethod
    def parse(name: str) -> Piece | None:
        """The piece that an object's name stands for; None where it is not the name of a piece."""
        match = re.fullmatch(r"journal/(\d{12})-(\d{9})-([0-9a-f]{16})\.jsonl", name)
        return Piece(int(match[1]), int(match[2]), match[3]) if match else None


def chain(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces that follow one another from offset 0 and reach farthest, in as few steps as possible."""
    reach: dict[int, int] = {}
    follow: dict[int, Piece] = {}
    for piece in sorted(pieces, reverse=True):
        end = reach.get(piece.end, piece.end)
        if end > reach.get(piece.start, piece.start):
            reach[piece.start], follow[piece.start] = end, piece
    found, at = [], 0
    while at in follow:
        found.append(follow[at])
        at = follow[at].end
    return found


class RemoteJournal:
    """The journal at the URL, piece by piece, and how it relates to the local one at `path`.

    renew: called between two transfers.

    Attributes:
        sent: bytes of the local journal that are at the URL.
    """

    def __init__(self, store: Store, path: Path, renew: Callable[[], object]) -> None:
        self._store, self._path, self._renew = store, path, renew
        self.forget()

    def forget(self) -> None:
        """Takes note that nothing is at the URL any more."""
        self.sent = 0
        self._small: list[Piece] = []  # the last pieces there, not yet merged

    def restore(self, listing: dict[str, int]) -> bool:
        """Brings the local journal as far as the URL's; returns whether the URL's went further.

        listing: size in bytes by name, of everything at the URL. Raises Refused where it holds another run's journal.
        """
        pieces = [piece for name in listing if (piece := Piece.parse(name))]
        good = [piece for piece in pieces if listing[piece.name] == piece.length]
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            while True:
                links = chain(good)
                known = len(list(itertools.takewhile(self._holds, links)))
                behind = known < len(links)
                damaged = self._fetch(links, known, part) if behind else None
                if damaged is None:
                    break
                good.remove(damaged)
            if behind:
                self._settle(part)
        finally:
            part.unlink(missing_ok=True)
        self.sent = links[-1].end if links else 0
        for piece in links:
            self._note(piece)
        self._put_aside(set(pieces) - set(links))
        return behind

    def _fetch(self, links: list[Piece], known: int, part: Path) -> Piece | None:
        """Writes the URL's journal to `part`, its first `known` pieces from the local one.

        Returns the piece that is not what its name says, or None.
        """
        with part.open("wb") as file:
            for piece in links[:known]:
                file.write(self._read(piece.start, piece.length))
            for piece in links[known:]:
                data = self._store.read(piece.name)
                if data is None or Piece.of(piece.start, data) != piece:
                    return piece
                file.write(data)
                self._renew()
            file.flush()
            os.fsync(file.fileno())
        return None

    def _settle(self, part: Path) -> None:
        """Puts the URL's journal in the local one's place; sets that aside where it went another way."""
        if self._path.exists():
            with self._path.open("rb") as ours, part.open("rb") as theirs:
                other_way = next((line for line in ours if line != theirs.read(len(line))), b"")
                ours.seek(0), theirs.seek(0)
                first = ours.readline()
                if _intact(first) and first != theirs.readline():
                    raise Refused(
                        f"storage {self._store.label} holds another run than {self._path.parent}; choose another "
                        "storage or another name"
                    )
            if other_way.endswith(b"\n"):  # otherwise our last line is only torn
                aside = _free_name(self._path.with_name("journal-set-aside.jsonl"))
                self._path.rename(aside)
                text = (
                    "storage %s holds another journal than %s (did two machines work in turn?) and wins; ours is now %s"
                )
                logger.warning(text, self._store.label, self._path, aside.name)
        part.replace(self._path)

    def _put_aside(self, pieces: set[Piece]) -> None:
        """Takes pieces that are not of the chain out of its way: what was merged goes, what may be of use is kept."""
        lost = 0
        for piece in sorted(pieces):
            if not (piece.end <= self.sent and self._holds(piece)):
                lost += 1
                self._store.write(f"left-out/{piece.name.partition('/')[2]}", self._store.read(piece.name) or b"")
            self._store.remove([piece.name])
            self._renew()
        if lost:
            text = "storage %s: %d damaged or stray piece(s) of the journal left out (they are in left-out/)"
            logger.warning(text, self._store.label, lost)

    def upload(self) -> None:
        """Carries over the whole lines that were added since the last call, as one piece unless they are many.

        Raises what the store raises; what was carried over until then counts.
        """
        while data := self._read(self.sent, PIECE_BYTES):
            data = data[: data.rfind(b"\n") + 1]
            if not data:
                break
            piece = Piece.of(self.sent, data)
            self._store.write(piece.name, data)
            self.sent = piece.end
            self._note(piece)
            self._renew()
        if len(self._small) >= MERGE_EVERY:
            # The whole is there before its parts go; whatever is left of them after a crash goes at the next start.
            parts = self._small
            data = self._read(parts[0].start, parts[-1].end - parts[0].start)
            self._store.write(Piece.of(parts[0].start, data).name, data)
            self._small = []
            self._store.remove(piece.name for piece in parts)

    def _read(self, start: int, length: int) -> bytes:
        try:
            with self._path.open("rb") as journal:
                journal.seek(start)
                return journal.read(length)
        except FileNotFoundError:
            return b""

    def _holds(self, piece: Piece) -> bool:
        return Piece.of(piece.start, self._read(piece.start, piece.length)) == piece

    def _note(self, piece: Piece) -> None:
        self._small.append(piece)
        if piece.length >= PIECE_BYTES // 2:
            self._small = []


def _intact(line: bytes) -> bool:
    """Whether a line of the journal is what was written (its checksum comes first)."""
    with suppress(ValueError):
        return line.endswith(b"\n") and int(line[:8], 16) == zlib.crc32(line[9:-1])
    return False


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())
