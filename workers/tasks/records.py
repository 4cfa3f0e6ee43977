"""A task's records in files: JSON lines (in a zip or not), a JSON list, or parquet. Knows no task and no prompt.

A file is read through once, which finds every damaged line and each record's digest. JSON lines are then read again one
by one when they are asked for, since the files of some benchmarks are larger than a worker's memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workers import hub
from workers.tasks import fields as kinds
from workers.tasks.fields import Fields


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
        check: called with each record that is wanted; raises ValueError, one line, for one that cannot be used.
        name: the key whose value names a record in what `check` says.

    Attributes:
        digests: SHA-256 of each record, as JSON with sorted keys.
        groups: SHA-256 of each record's `group`.
        fingerprint: names all of them together.

    Raises ValueError, naming file, line and what was expected, if the file is damaged.
    """

    def __init__(
        self,
        file: Path,
        fields: Fields,
        group: str,
        member: str | None = None,
        only: Mapping[str, Any] | None = None,
        check: Callable[[dict[str, Any]], None] | None = None,
        name: str | None = None,
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
            place = f"{self._unit} {number}"
            try:
                kinds.check(row, fields)
                if name is not None:
                    place = f"{row[name]} ({place})"
                if any(row.get(key) != value for key, value in (only or {}).items()):
                    continue
                if check is not None:
                    check(row)
            except ValueError as error:
                raise ValueError(f"{self._where}, {place}: {error}") from None
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
            return _parsed(file.readline())

    def _rows_of_lines(self, member: str | None) -> Iterator[tuple[int, int, Any]]:
        offset = 0
        with self._open(member) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield number, offset, _parsed(line)
                    except (ValueError, RecursionError) as error:
                        raise ValueError(
                            f"{self._where}, line {number}: expected one JSON object ({_reason(error)}); is the file "
                            "whole?"
                        ) from None
                offset += len(line)

    def _open(self, member: str | None) -> io.BufferedIOBase:
        try:
            if member is None:
                return open(self.file, "rb")
            return io.BytesIO(zipfile.ZipFile(self.file).read(member))
        except KeyError:
            raise ValueError(f"{self.file}: expected {member} in it") from None
        except OSError as error:
            raise ValueError(f"{self.file}: cannot be read ({error.strerror or error})") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged, or with a password
            raise ValueError(f"{self.file}: expected a zip file ({error}); is the file whole?") from None

    def _rows_of_list(self) -> Iterator[tuple[int, int, Any]]:
        try:
            rows = _parsed(self.file.read_bytes())
        except OSError as error:
            raise ValueError(f"{self.file}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise ValueError(
                f"{self.file}{where}: expected a JSON list ({_reason(error)}); is the file whole?"
            ) from None
        if not isinstance(rows, list):
            raise ValueError(f"{self.file}: expected a JSON list of records, found {type(rows).__name__}")
        yield from ((number, 0, row) for number, row in enumerate(rows, 1))

    def _rows_of_parquet(self) -> Iterator[tuple[int, int, Any]]:
        import pyarrow
        from pyarrow import parquet

        try:
            rows = parquet.read_table(self.file).to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"{self.file}: expected a parquet file ({reason}); is the file whole?") from None
        yield from ((number, 0, row) for number, row in enumerate(rows, 1))


def _parsed(text: bytes) -> Any:
    """JSON in which no object has a key twice. Raises ValueError."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return found


def _reason(error: Exception) -> str:
    """Why a text is no JSON, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return "too deeply nested"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).split("; ")[0]
