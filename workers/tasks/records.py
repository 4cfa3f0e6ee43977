"""A task's records in files: JSON lines (in a zip or not), a JSON list, or parquet. Knows no task and no prompt.

A file is read through once, which finds every damaged line and each record's digest. JSON lines are then read again one
by one when they are asked for, since the files of some benchmarks are larger than a worker's memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workers import hub

Fields = Mapping[str, tuple[type, ...]]
"""Keys that every record must have, and the types that their values may have."""


def locate(path: str, revision: str | None, names: tuple[str, ...], what: str, key: str = "tasks.path") -> Path:
    """The first of the files `names` that is in a folder, or in a data set on the Hub.

    path: the folder, the data set's name, or the file itself; names: relative to the folder, the usual one first; what:
    what the files are, for messages; key: the setting that holds the path. Raises ValueError, one line, if there is
    none.
    """
    wanted = " or ".join(names)
    if Path(path).is_file():
        return Path(path)
    if Path(path).is_dir():
        folder = Path(path)
    elif hub.is_repository(path):
        try:
            folder = hub.data(path, revision, names)
        except ValueError as error:
            raise ValueError(f"{what}: {error} ({key})") from None
    else:
        raise ValueError(f"{what}: {key} is {path!r}, which does not exist: download {wanted} and give their folder")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{what}: {path} holds no {wanted}: bring it there, or name the folder that holds it ({key})")


class Records:
    """The records of one file, in its order.

    Args:
        file: `*.jsonl`, `*.json` (one list), `*.parquet`, or a `*.zip` whose `member` is JSON lines.
        fields: what each record must have.
        group: the key whose text says which records belong together (questions on one document).
        only: keys and values that a record must have to be taken; others are skipped.

    Attributes:
        digests: SHA-256 of each record, as JSON with sorted keys.
        groups: SHA-256 of each record's `group`.
        fingerprint: names all of them together.

    Raises ValueError, naming file, line and what was expected, if the file is damaged.
    """

    def __init__(
        self, file: Path, fields: Fields, group: str, member: str | None = None, only: Mapping[str, Any] | None = None
    ) -> None:
        self.file, self._where = file, f"{file}: {member}" if member else str(file)
        self._unit = "record" if file.suffix == ".json" else "line"
        self.digests: list[bytes] = []
        self.groups: list[bytes] = []
        self._offsets: list[int] | None = [] if file.suffix not in (".zip", ".parquet", ".json") else None
        self._held: list[dict[str, Any]] = []
        readers = {".parquet": self._rows_of_parquet, ".json": self._rows_of_list}
        rows = readers[file.suffix]() if file.suffix in readers else self._rows_of_lines(member)
        for number, offset, row in rows:
            self._check(row, number, fields)
            if any(row.get(key) != value for key, value in (only or {}).items()):
                continue
            self.digests.append(hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest())
            self.groups.append(hashlib.sha256(str(row[group]).encode()).digest())
            if self._offsets is None:
                self._held.append(row)
            else:
                self._offsets.append(offset)
        if not self.digests and only:
            raise ValueError(f"{self._where}: has no record with {', '.join(f'{k} {v!r}' for k, v in only.items())}")
        if not self.digests:
            raise ValueError(f"{self._where}: is empty; expected one JSON object a {self._unit}")
        self.fingerprint = hashlib.sha256(b"".join(self.digests)).hexdigest()

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._offsets is None:
            return self._held[index]
        with open(self.file, "rb") as file:
            file.seek(self._offsets[index])
            return json.loads(file.readline())

    def _rows_of_lines(self, member: str | None) -> Iterator[tuple[int, int, Any]]:
        offset = 0
        with self._open(member) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield number, offset, json.loads(line)
                    except (json.JSONDecodeError, UnicodeDecodeError) as error:
                        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
                        raise ValueError(
                            f"{self._where}, line {number}: expected one JSON object ({reason}); is the file whole?"
                        ) from None
                offset += len(line)

    def _open(self, member: str | None) -> io.BufferedIOBase:
        if self.file.suffix != ".zip":
            return open(self.file, "rb")
        try:
            return io.BytesIO(zipfile.ZipFile(self.file).read(member or ""))
        except KeyError:
            raise ValueError(f"{self.file}: expected {member} in it") from None
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.file}: expected a zip file ({error}); is the file whole?") from None

    def _rows_of_list(self) -> Iterator[tuple[int, int, Any]]:
        try:
            rows = json.loads(self.file.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
            raise ValueError(f"{self.file}{where}: expected a JSON list ({reason}); is the file whole?") from None
        if not isinstance(rows, list):
            raise ValueError(f"{self.file}: expected a JSON list of records, found {type(rows).__name__}")
        yield from ((number, 0, row) for number, row in enumerate(rows, 1))

    def _rows_of_parquet(self) -> Iterator[tuple[int, int, Any]]:
        import pyarrow
        from pyarrow import parquet

        try:
            rows = parquet.read_table(self.file).to_pylist()
        except (pyarrow.ArrowInvalid, OSError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"{self.file}: expected a parquet file ({reason}); is the file whole?") from None
        yield from ((number, 0, row) for number, row in enumerate(rows, 1))

    def _check(self, row: Any, number: int, fields: Fields) -> None:
        line = f"{self._where}, {self._unit} {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{line}: expected one JSON object, found {type(row).__name__}")
        for key, types in fields.items():
            names = " or ".join(t.__name__ for t in types)
            if key not in row:
                raise ValueError(f"{line}: expected the key {key!r} ({names}); found {', '.join(map(str, row))}")
            if not isinstance(row[key], types):
                raise ValueError(f"{line}: expected {key!r} to be {names}, found {type(row[key]).__name__}")
