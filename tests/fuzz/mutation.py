"""Random damage to bytes and to plain data (what JSON and YAML hold). Knows nothing of what they mean."""

from __future__ import annotations

import datetime
import random
import string
from collections.abc import Callable
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 10**30, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ", "x",
    "x" * 300, "@best", "..", "a/b", "a\x00b", "\u2028", "\ud800", "ü" * 90, "1e-3", "on", "none", "../../etc", [], {},
    [[]], [None], [1, "a"], {"a": 1}, {"name": "full"}, datetime.date(2024, 11, 28), "full", "topic", ["topic"],
)  # fmt: skip
"""Values that somebody may write where another is expected."""


def bytes_of(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one to four things done to them."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice([1, 1, 2, 8, 100]))
        what = rng.randrange(6)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at:end] = rng.randbytes(end - at)
        elif what == 2:
            del changed[at:end]
        elif what == 3:
            changed[at:at] = rng.choice([b"\n", b"\x00", b"{", b'"', b"\xff\xfe", b"9" * 20, rng.randbytes(5)])
        elif what == 4:
            changed[at:at] = changed[at:end]
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def tree_of(rng: random.Random, tree: Any, values: Callable[[], Any] | None = None) -> Any:
    """Plain data with one place changed: a value replaced, a key dropped, renamed or added, an item repeated."""
    draw = values or (lambda: rng.choice(NASTY))
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        what = rng.random()
        if what < 0.6:
            return {**tree, key: tree_of(rng, tree[key], draw)}
        if what < 0.8:
            return {**tree, key: draw()}
        rest = {name: value for name, value in tree.items() if name != key}
        if what < 0.9:
            return rest
        return {**rest, word(rng, key if isinstance(key, str) else "key"): tree[key]}
    if isinstance(tree, list) and tree and rng.random() < 0.8:
        at = rng.randrange(len(tree))
        if rng.random() < 0.2:
            return [*tree, tree[at]]
        return [*tree[:at], tree_of(rng, tree[at], draw), *tree[at + 1 :]]
    return draw()


def word(rng: random.Random, text: str) -> str:
    """A text with one letter more, less or other."""
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(["", rng.choice(string.printable), "ß", "."]) + text[at + rng.randrange(2) :]
