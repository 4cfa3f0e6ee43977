"""What the values of a record must be: each kind says what it expects and what is wrong with a value. Knows no file."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_TOKENS = 2**20
"""Longest answer that a record may ask for."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


@dataclass(frozen=True)
class Field:
    """A kind of value."""

    types: tuple[type, ...]
    """What Python makes of such a value's JSON; a bool is no int here."""
    wrong: Callable[[Any], str | None]
    """What was expected of a value of those types, where this one is not it; None: it is."""
    required: bool = True
    """Whether every record must have it; otherwise it may be absent, or null."""

    @property
    def names(self) -> str:
        """The types, for messages."""
        return " or ".join(t.__name__ for t in self.types)


Fields = Mapping[str, Field]
"""The values of a record by their keys."""


def text(blank: bool = True, required: bool = True) -> Field:
    """A text. blank: whether it may be empty, or hold space alone."""
    return Field((str,), lambda value: None if blank or value.strip() else "a text that is not blank", required)


def texts(blank: bool = True, required: bool = True, least: int = 0) -> Field:
    """A list of at least `least` texts. blank: whether they may be empty."""

    def wrong(value: list[Any]) -> str | None:
        if len(value) < least:
            return "a list of one or more texts"
        if not all(isinstance(item, str) and (blank or item) for item in value):
            return "a list of texts" if blank else "a list of texts that are not empty"
        return None

    return Field((list,), wrong, required)


def answers(*types: type) -> Field:
    """One or more reference answers: a list of texts and numbers of which the first is not blank.

    types: others than a list that stand for a list of one.
    """

    def wrong(value: Any) -> str | None:
        items = value if isinstance(value, list) else [value]
        if not items or not all(isinstance(item, str) or _is_number(item) for item in items):
            return "a list of one or more texts"
        return None if str(items[0]).strip() else "a list whose first text is not blank"

    return Field((list, *types), wrong)


def count(least: int, most: int = MOST_TOKENS) -> Field:
    """A whole number from `least` to `most`."""
    return Field((int,), lambda value: None if least <= value <= most else f"{least} to {most}")


def number(least: float = -math.inf) -> Field:
    """A finite number of at least `least`."""
    said = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
    return Field((int, float), lambda value: None if _is_number(value) and value >= least else said)


def check(record: Any, fields: Fields) -> None:
    """Raises ValueError, one line, where a record is not as `fields` wants it, or cannot be shown to a model."""
    if not isinstance(record, dict):
        raise ValueError(f"expected one JSON object, found {type(record).__name__}")
    for key, part in _texts_in(record):
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"expected {key!r} to be text, found half a character (a lone surrogate, "
                f"{part[error.start]!r}) in {shown(part[max(0, error.start - 20) : error.start + 20])}"
            ) from None
    for key, field in fields.items():
        if key not in record:
            if field.required:
                found = ", ".join(name if name.isprintable() else repr(name) for name in map(str, record))
                raise ValueError(f"expected the key {key!r} ({field.names}); found {found or 'none'}")
            continue
        value = record[key]
        if value is None and not field.required:
            continue
        if not isinstance(value, field.types) or (isinstance(value, bool) and bool not in field.types):
            raise ValueError(f"expected {key!r} to be {field.names}, found {type(value).__name__}")
        if (wanted := field.wrong(value)) is not None:
            raise ValueError(f"expected {key!r} to be {wanted}, found {shown(value)}")


def shown(value: Any) -> str:
    """A value in a message: one line, and not a long one."""
    return _short.repr(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def _texts_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a record, keys included, each with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield key or "a key", str(name)
            yield from _texts_in(part, key or str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part, key)
