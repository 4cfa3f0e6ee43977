"""Addresses with a password, most of them malformed; knows what the password was, and so whether a text shows of it."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from orchestrator import addresses
from orchestrator.messages import first_line
from orchestrator.tracking.redaction import without_secrets
from tests.fuzz.running import refused
from workers.masking import masked_url

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ23456789jkqvxz"  # no word of a message
_BETWEEN = [
    "/",
    "@",
    "#",
    "?",
    " ",
    "%",
    "%2",
    "%zz",
    ":",
    "&",
    "=",
    "[",
    "]",
    "\\",
    "'",
    '"',
    "ü",
    "＠",
    "／",
    "\u2028",
    "\t",
]
_BETWEEN += ["", "//", "@@", ":@", "/@", "?password=", "%40", "\U0001f600", "\x7f", ";", "|", "^", "{", ">", "～"]
_SCHEMES = ["redis", "rediss", "http", "https", "postgresql", "mysql+pymysql", "s3", "ftp", "sftp", "webdav"]
_ENDS = ["host:6379/0", "host", "127.0.0.1:5000", "[::1]:6379/0", "a.b.example/path", "", ":6379", "/0", "host:port/0"]
_ENDS += ["host:6379/0?db=1", "[::1", "host:99999999/1", "host /0", "ho st:1"]
_SHOWN = 4
"""Characters of a password in a row that count as shown."""


@dataclass(frozen=True)
class Secret:
    """An address and the pieces of its password, none of which may be seen."""

    address: str
    pieces: tuple[str, ...]

    def shown_in(self, text: str) -> bool:
        """Whether a piece of the password stands in `text`, or four characters of it in a row."""
        return any(piece[i : i + _SHOWN] in text for piece in self.pieces for i in range(len(piece) - _SHOWN + 1))


def draw(rng: random.Random) -> Secret:
    """An address whose password has anything in it. Where the host is missing, it has no @, which would make one."""
    host = rng.random() < 0.85
    words = ["".join(rng.choices(_LETTERS, k=rng.randint(5, 9))) for _ in range(rng.randint(1, 4))]
    password = words[0]
    for word in words[1:]:
        password += rng.choice(_BETWEEN) + word
    if not host:
        password = "x" + re.sub(r"[@＠]", "/", password)
    if rng.random() < 0.3:
        password += rng.choice(_BETWEEN) if host else "/"
    user = rng.choice(["", "", "me", "a.user", "some one"] if host else ["", "me"])
    scheme = rng.choice(_SCHEMES) + rng.choice(["://"] * 8 + [":///", ":/", "//", ":", ":// "])
    if not host and not scheme.endswith("://"):
        scheme = "redis://"
    if host and rng.random() < 0.05:
        scheme = ""
    address = f"{scheme}{user}:{password}" + (f"@{rng.choice(_ENDS)}" if host else "")
    return Secret(address, tuple(words))


class Inputs:
    """Addresses with a password, in messages and records; the well-formed ones are accepted and shown without it."""

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        secret = draw(rng)
        said = [masked_url(secret.address), first_line(OSError(f"cannot connect to {secret.address}: refused"))]
        said.append(str(without_secrets({"redis_url": secret.address, "a": {"b": [f"at {secret.address}"]}})))
        said.append(str(addresses.kept({"storage": secret.address})))
        try:
            addresses.check(secret.address, "Redis", "redis://HOST:PORT/0")
            accepted = True
        except ValueError as error:
            accepted = refused(error)
            said.append(str(error))
        for text in said:
            assert not secret.shown_in(text), f"{secret.address!r} is shown as {text!r}"
        return accepted
