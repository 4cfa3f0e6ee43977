"""Hides credentials in addresses before they reach a message or a record. Knows nothing of what the addresses are for.

Where an address with credentials is not well-formed, nobody can say where its password ends, so that nothing after its
scheme is shown.
"""

from __future__ import annotations

import re

HIDDEN = "***"
"""Stands where credentials stood."""

_SCHEMES = frozenset(
    "redis rediss unix http https ray file local memory sqlite postgresql mysql mssql databricks s3 s3a gs gcs az abfs "
    "adl ftp sftp ssh smb hdfs webhdfs webdav webdavs dropbox oci oss".split()
)
"""Shown where nothing else of an address is; an unknown one may be a piece of a password."""
_FILES = ("sqlite:///", "sqlite+pysqlite:///", "file:///", "local:///", "unix:///")
"""Addresses that begin like this name a file, and have credentials in no place but their options."""
_HOST = r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_SAFE = r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})"  # RFC 3986: pchar without @
_OPTIONS = rf"(?:\?[\w.-]+=(?:{_SAFE}|[/?])*)?"
_WITH_CREDENTIALS = {
    "redis": re.compile(rf"{_SAFE}*@(?P<rest>{_HOST}(?:/[0-9]*)?{_OPTIONS})", re.ASCII),
    "database": re.compile(rf"{_SAFE}*@(?P<rest>(?:{_HOST})?(?:/{_SAFE}*)*{_OPTIONS})", re.ASCII),
    "other": re.compile(rf"{_SAFE}*@(?P<rest>{_HOST}(?:/{_SAFE}*)*{_OPTIONS})", re.ASCII),
}
_WITHOUT = {
    "redis": re.compile(rf"{_HOST}(?:/[0-9]*)?{_OPTIONS}", re.ASCII),
    "database": re.compile(rf"(?:{_HOST})?(?:/[^?#:]*)?{_OPTIONS}"),
    "other": re.compile(rf"(?:{_HOST}(?:/[^?#]*)?|(?:/[^?#:]*)?){_OPTIONS}"),
}
_KINDS = {"redis": "redis", "rediss": "redis", "unix": "database"}
_KINDS |= dict.fromkeys(("postgresql", "mysql", "mssql"), "database")
_BUCKETS = frozenset("s3 s3a gs gcs az abfs adl oci oss memory".split())
_BUCKET = re.compile(rf"(?!.*:.*@)[A-Za-z0-9._~-]+(?:@[A-Za-z0-9._-]+)?(?:/[^?#]*)?{_OPTIONS}")
"""Objects' names may have an @, and Azure's accounts stand behind one; a password has a colon before it."""
_PLACE = re.compile(rf"{_HOST}|[\w.~ /-]*")
_SECRET_OPTION = re.compile(
    r"[?&;#][^=&\s]*(?:password|passwd|pwd|token|secret|key|credential)[^=&\s]*=", re.IGNORECASE
)
_SCHEME = re.compile(r"(?:[a-z0-9]+::)*[A-Za-z][A-Za-z0-9+.-]*", re.ASCII)
_STARTS = re.compile(rf"{_SCHEME.pattern}://", re.ASCII)
_BARE = re.compile(r"[^\s@]*:(?=\S).*@")
_CLOSING = re.compile(r"[\s'\")\]},;:.]*\Z")


def masked_url(address: str) -> str:
    """`address`, which is one address and nothing else, without its credentials, safe to print and to store.

    Of a well-formed one only the part between `://` and `@` becomes ***, and everything from the value of the first
    option whose name says that it is secret. Of one that is not well-formed, only the scheme is left.
    """
    scheme, found, rest = address.partition("://")
    kind = _KINDS.get(_plain(scheme), "other")
    option = _SECRET_OPTION.search(rest)
    shown, end = (rest[: option.end()], HIDDEN) if option else (rest, "")
    if not address.isprintable():
        return _hidden(address)
    if not found:
        return address if _PLACE.fullmatch(address) else HIDDEN
    if address.startswith(_FILES) or (_plain(scheme) in _BUCKETS and _BUCKET.fullmatch(shown)):
        return f"{scheme}://{shown}{end}"
    if "@" not in rest:
        plain = _SCHEME.fullmatch(scheme) and _WITHOUT[kind].fullmatch(shown)
        return f"{scheme}://{shown}{end}" if plain else _hidden(address)
    known = _plain(scheme) in _SCHEMES and rest.count("@") == 1
    match = _WITH_CREDENTIALS[kind].fullmatch(shown) if known else None
    return f"{scheme}://{HIDDEN}@{match['rest']}{end}" if match else _hidden(address)


def masked_text(text: str) -> str:
    """`text`, in which addresses may stand among other words, without their credentials.

    Where an address is not well-formed, everything from it to the last `@` of its line goes with its password, or the
    rest of the line if there is none.
    """
    return "\n".join(map(_masked_line, text.split("\n")))


def well_formed(address: str) -> bool:
    """Whether an address can be read in one way only: what `masked_url` shows more than the scheme of."""
    return masked_url(address) != _hidden(address)


def _masked_line(line: str) -> str:
    done, at = "", 0
    while found := _STARTS.search(line, at):
        following = _STARTS.search(line, found.end())
        end = following.start() if following else len(line)
        end = _end(line, found.start(), end)
        address = line[found.start() : end]
        if not well_formed(address) and not address.endswith(f"://{HIDDEN}"):
            end = _end(line, found.start(), len(line)) if "@" in line[found.end() :] else len(line)
        done += _BARE.sub(f"{HIDDEN}@", line[at : found.start()]) + masked_url(line[found.start() : end])
        at = end
    return done + _BARE.sub(f"{HIDDEN}@", line[at:])


def _end(line: str, start: int, limit: int) -> int:
    """Where an address that begins at `start` ends, at most at `limit`: a word after the last @, or the first word."""
    word = re.compile(r"\S*").match(line, max(start, line.rfind("@", start, limit)), limit)
    end = word.end() if word else limit
    closing = _CLOSING.search(line[start:end])
    return start + closing.start() if closing else end


def _plain(scheme: str) -> str:
    """A scheme without the driver or the chain that may stand around it: mysql of mysql+pymysql."""
    name = scheme.rpartition("::")[2].partition("+")[0]
    return name if _SCHEME.fullmatch(scheme) else ""


def _hidden(address: str) -> str:
    scheme, found, _ = address.partition("://")
    return f"{_plain(scheme)}://{HIDDEN}" if found and _plain(scheme) in _SCHEMES else HIDDEN
