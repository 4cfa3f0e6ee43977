"""Writes files whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON."""
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One line of JSON for each record."""
    write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write(path: Path, content: str | bytes, *, private: bool = False, mark: str = "") -> None:
    """Writes a file that is visible under its name only when all of it is there, and on disk.

    private: whether it is for this user alone, from the first moment on. mark: told apart by it, two writers of the
    same file never share a half-written one.
    """
    part = path.with_name(f"{path.name}{mark}.part")
    part.unlink(missing_ok=True)  # left by a writer that died, perhaps with other permissions
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
