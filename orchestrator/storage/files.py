"""Writes small files whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON."""
    write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """One line of JSON for each record."""
    write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write(path: Path, text: str) -> None:
    """`text`, visible under its name only when all of it is there."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    part.replace(path)
