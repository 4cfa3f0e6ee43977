"""A repository of the Hugging Face Hub: which commit is meant, and its files, fetched once on each node.

Files go to the Hub's own cache (HF_HOME), whose locks let one process of a node fetch a file while the others wait
for it. A token comes only from the environment (HF_TOKEN), and is only sent to the Hub. Knows nothing of what is in the
files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

SETTINGS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
"""Everything but the weights: configuration and tokenizer. No Python, no pickles."""


def is_repository(path: str) -> bool:
    """Whether `path` has the form of a repository's name, owner/name."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) is not None


def commit(repository: str, revision: str | None) -> str:
    """Hash of the commit that a branch, tag or commit names; None is the default branch.

    Raises ValueError, one line, if it does not exist or cannot be looked up.
    """
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return settings(repository, revision).name


def settings(repository: str, revision: str | None) -> Path:
    """Folder with configuration and tokenizer, named after the commit.

    If the Hub cannot be reached, it is what the cache holds of that revision. Raises ValueError, one line, if there is
    nothing.
    """
    return _fetch(repository, revision, SETTINGS)


def fetch(repository: str, commit: str, files: list[str]) -> None:
    """Fetches files into the folder that `settings` named. Raises ValueError, one line, also if one does not exist."""
    folder = _fetch(repository, commit, files)
    for file in files:
        if not (folder / file).is_file():
            raise ValueError(f"{repository} has no file {file} at commit {commit}")


def has(repository: str, commit: str, file: str) -> bool:
    """Whether the repository holds a file; fetches nothing. Raises ValueError, one line, if it cannot find out."""
    with _one_line(repository, commit):
        return HfApi(token=_token()).file_exists(repository, file, revision=commit)


def data(repository: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """Folder with those of the given files that a data set has.

    If the Hub cannot be reached, it is what the cache holds of that revision. Raises ValueError, one line that says
    what to download, if there is nothing.
    """
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=revision, token=_token(), allow_patterns=list(files)
        )
    except Exception as error:  # as in `_one_line`
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        why = f"HTTP {status}" if status else str(cause).split("\n")[0] or type(cause).__name__
        name = repository if revision is None else f"{repository} --revision {revision}"
        wanted = " or ".join(files)
        raise ValueError(
            f"folder {repository} does not exist, and the Hub's data set of that name could not be fetched ({why}) "
            f"nor is it in the cache: `hf download {name} --repo-type dataset` where there is a network, and bring "
            f"{constants.HF_HUB_CACHE} to every node (HF_HOME moves it), or give a folder that holds {wanted}"
        ) from None
    return Path(folder)


def _fetch(repository: str, revision: str | None, patterns: list[str]) -> Path:
    with _one_line(repository, revision):
        folder = snapshot_download(
            repository,
            revision=revision,
            token=_token(),
            allow_patterns=patterns,
            ignore_patterns=["*/*"],  # other formats and the training's own files stand in subfolders
        )
    return Path(folder)


def _token() -> str | bool:
    """HF_TOKEN, or False: no token at all, not even one that is stored in the user's home folder."""
    return os.environ.get("HF_TOKEN", "").strip() or False


@contextmanager
def _one_line(repository: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # HTTP, file system and time-outs have types of their own: all one question to the user
        raise ValueError(_reason(error, repository, revision)) from None


def _reason(error: Exception, repository: str, revision: str | None) -> str:
    """What went wrong and what to do about it. Quotes no request, which would contain the token."""
    token = "the account of the token in HF_TOKEN" if _token() else None
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if isinstance(cause, GatedRepoError):
        if token:
            return f"{repository} is gated and {token} may not read it: accept the licence on its page"
        return f"{repository} is gated: accept its licence on its page and set HF_TOKEN in every node's environment"
    if isinstance(cause, RevisionNotFoundError):
        return f"{repository} has no branch, tag or commit {revision!r}: correct model.revision"
    if isinstance(cause, RepositoryNotFoundError):
        hidden = f"one that {token} may not read" if token else "a private one (set HF_TOKEN)"
        return f"model folder {repository} does not exist, and the Hub has no repository of that name, or {hidden}"
    if status in (401, 403):
        return f"the Hub refuses the token in HF_TOKEN for {repository} (HTTP {status}): make one that may read it"
    why = f"HTTP {status}" if status else str(cause).split("\n")[0] or type(cause).__name__
    name = repository if revision is None else f"{repository} --revision {revision}"
    return (
        f"model folder {repository} does not exist, and the Hub's repository of that name could not be fetched ({why}) "
        f"nor is it complete in the cache: `hf download {name}` where there is a network, and bring "
        f"{constants.HF_HUB_CACHE} to every node (HF_HOME moves it)"
    )
