"""Which tokens a memory was fed, as a running digest for each row: enough to tell its text from another.

Knows nothing of what is remembered of them.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_AT_ONCE = 64
"""Pieces of text on an accelerator that are hashed together, so that no step waits for a copy."""


class TextRead:
    """Token ids fed so far, padding included, in columns. Embeddings leave no trace: what they stood for is unknown.

    A call that is announced and then refused is not counted: the next one begins at the column where that began.
    """

    def __init__(self) -> None:
        self.known = True
        """Whether all columns so far came as token ids."""
        self._digests: list[hashlib.blake2b] = []
        """Of each row, up to `_hashed`."""
        self._hashed = 0
        self._waiting: list[Tensor] = []
        """(rows, new) each, the columns since; the last may still be refused."""

    def announce(self, seen: int, ids: Tensor | None) -> None:
        """A call begins that feeds ids (rows, new), or embeddings (None), behind `seen` columns.

        May be said of one call by several models inside each other, the outermost first.
        """
        length = self._length()
        if self._waiting and length - self._waiting[-1].shape[1] == seen:
            if ids is None:
                return  # the embeddings of the ids that an outer model announced
            self._waiting.pop()
        elif length != seen:
            self.known = False
        if ids is None:
            self.known = False
        if not self.known:
            self._digests, self._waiting = [], []
            return
        if len(self._waiting) > (_AT_ONCE if ids is not None and ids.device.type != "cpu" else 1):
            self._hash(len(self._waiting))
        assert ids is not None
        self._waiting.append(ids.detach().clone())

    def begins(self, ids: Tensor, seen: int) -> bool:
        """Whether ids (rows, columns) begin with the `seen` columns that were fed; unknown text begins any."""
        if not self.known or not seen:
            return True
        self._settle(seen)
        if not self.known:
            return True
        rows = len(self._digests)
        if ids.shape[1] < seen or rows % len(ids):
            return False
        fresh: list[hashlib.blake2b] = [hashlib.blake2b(digest_size=16) for _ in range(len(ids))]
        _feed(fresh, ids[:, :seen])
        times = rows // len(ids)  # `generate` repeats each prompt for its samples or beams
        return all(fresh[i // times].digest() == digest.digest() for i, digest in enumerate(self._digests))

    def select(self, rows: list[int], seen: int) -> None:
        """Moves the text as the memory's rows are moved; seen: columns fed."""
        if self.known:
            self._settle(seen)
            self._digests = [self._digests[i].copy() for i in rows] if self._digests else []

    def copied(self) -> TextRead:
        """The same text, to go on differently."""
        twin = TextRead()
        twin.known, twin._hashed = self.known, self._hashed
        twin._digests, twin._waiting = [digest.copy() for digest in self._digests], list(self._waiting)
        return twin

    def _length(self) -> int:
        return self._hashed + sum(ids.shape[1] for ids in self._waiting)

    def _settle(self, seen: int) -> None:
        """Hashes all that is waiting; what was announced and refused is dropped."""
        if self._waiting and self._length() != seen:
            self._waiting.pop()
        if self._length() != seen:
            self.known = False
            self._digests, self._waiting = [], []
            return
        self._hash(len(self._waiting))

    def _hash(self, pieces: int) -> None:
        some, self._waiting = self._waiting[:pieces], self._waiting[pieces:]
        if not some:
            return
        ids = torch.cat(some, dim=1)
        if not self._digests:
            self._digests = [hashlib.blake2b(digest_size=16) for _ in range(len(ids))]
        _feed(self._digests, ids)
        self._hashed += ids.shape[1]


def _feed(digests: list[hashlib.blake2b], ids: Tensor) -> None:
    for digest, row in zip(digests, ids.to("cpu", torch.int64).contiguous().numpy(), strict=True):
        digest.update(row.tobytes())
