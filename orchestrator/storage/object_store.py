"""Whole objects below one fsspec URL, and one plain line where it cannot be used. Knows nothing of runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from orchestrator.addresses import check
from orchestrator.messages import first_line
from orchestrator.storage import files
from workers.masking import masked_url

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_REAL_FOLDERS = {"file", "local", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"}
# Elsewhere folders need not be made, and trying to would make a bucket of a misspelt name.


class Refused(ValueError):
    """The URL may not be used by this job; one line says what to do."""


class Store:
    """Whole objects below one URL, by name. Raises ValueError, one line, where fsspec cannot use the URL.

    All other methods raise what the store raises; `plainly` turns that into one line.

    Attributes:
        label: the URL without credentials, for messages.
        root: what fsspec calls the place that the URL names.
        local: whether that is a folder of this machine.
    """

    def __init__(self, url: str) -> None:
        self.label = masked_url(url)
        protocol, found, path = url.partition("://")
        if not (found and protocol and path.strip("/")):
            raise ValueError(f"storage {self.label!r} is not a URL: write s3://bucket/folder or file:///folder")
        check(url, "storage", "s3://bucket/folder or file:///folder")
        self._protocol = protocol.rpartition("::")[2]
        try:
            # An instance of our own: shared ones keep listings that other writers have outdated.
            self._fs, self.root = fsspec.url_to_fs(url, skip_instance_cache=True)
        except ImportError as error:
            package = _PACKAGES.get(self._protocol)
            hint = f"pip install {package}" if package else first_line(error)
            raise ValueError(f"storage {self.label} needs a package that is not installed: {hint}") from None
        except Exception as error:
            hint = "known are file, s3, gs, az and what else fsspec has packages for"
            raise ValueError(f"storage {self.label} cannot be used ({first_line(error)}); {hint}") from None
        self.root = self.root.rstrip("/")
        self.local = isinstance(self._fs, LocalFileSystem)
        self._mark = f".{uuid.uuid4().hex[:8]}"  # two writers never share a half-written file

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Turns whatever a store raises into one ValueError that says what to do."""
        try:
            yield
        except Refused:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            what = "make the bucket or folder first, or " if isinstance(error, FileNotFoundError) else ""
            raise ValueError(
                f"storage {self.label} cannot be used ({reason}); {what}correct the URL or its credentials"
            ) from None

    def make_root(self) -> None:
        """Makes the folder that the URL names, where the store has folders."""
        if self._protocol in _REAL_FOLDERS:
            self._fs.makedirs(self.root, exist_ok=True)

    def check_root(self) -> None:
        """Raises FileNotFoundError where the root is a folder that is gone: a lost mount is not an empty one."""
        if self._protocol in _REAL_FOLDERS and not self._fs.isdir(self.root):
            raise FileNotFoundError(self.root)

    def list(self) -> dict[str, int]:
        """Sizes in bytes by name."""
        found = self._fs.find(self.root, detail=True)
        names = {path[len(self.root) :].lstrip("/"): info["size"] for path, info in found.items()}
        return {name: size for name, size in names.items() if name}

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is no such object."""
        try:
            return self._fs.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Puts an object there, whole or not at all, in the place of one of the same name.

        Raises FileNotFoundError where the root is a folder that is gone.
        """
        try:
            self._put(f"{self.root}/{name}", data)
        except FileNotFoundError:
            # A folder below the root. The root itself may be a mount that is gone for now: that is never made again.
            if "/" not in name:
                raise
            for parent in list(PurePosixPath(name).parents)[-2::-1]:
                with suppress(FileExistsError):
                    self._fs.mkdir(f"{self.root}/{parent}", create_parents=False)
            self._put(f"{self.root}/{name}", data)

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects, which must be there."""
        if paths := [f"{self.root}/{name}" for name in names]:
            self._fs.rm(paths)

    def _put(self, path: str, data: bytes) -> None:
        if self.local:
            files.write(Path(path), data, mark=self._mark)
        else:
            self._fs.pipe_file(path, data)
