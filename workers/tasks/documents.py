"""Real text for tasks: a folder of documents, or Python's own, as passages of prose that are split without overlap.

Code, tables and grammar are left out; a paragraph that stands in several documents stays in one. Knows no task and no
tokenizer.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from workers.tasks import SPLITS

PYTHON = "python"
"""Names the documentation topics that every Python carries (`pydoc_data.topics`)."""
ENDINGS = (".txt", ".md", ".rst")
"""Files of a folder, at any depth, that are read."""
SHORTEST = 8
"""Words of the shortest paragraph."""

_SENTENCE = re.compile(r"(?<=[.!?])[\"”’)]*\s+(?=[\"“‘(]*[A-Z0-9])")
_UNDERLINE = re.compile(r"([=\-~^*\"'`#+.:_])\1{2,}")
_MARKER = re.compile(r"^(?:[*+\-•]|\(?[0-9a-z]{1,2}[.)])\s+")


@dataclass(frozen=True)
class Passage:
    """What stands under one heading."""

    heading: str
    """Empty for what stands above a document's first heading."""
    paragraphs: tuple[tuple[str, ...], ...]
    """Each a row of sentences."""


@dataclass(frozen=True)
class Document:
    """A document's prose."""

    name: str
    passages: tuple[Passage, ...]

    @property
    def characters(self) -> int:
        """Length of its paragraphs."""
        return sum(len(s) for p in self.passages for paragraph in p.paragraphs for s in paragraph)


@dataclass(frozen=True)
class Library:
    """All documents, shared out among the splits."""

    splits: dict[str, tuple[Document, ...]]
    fingerprint: str
    """SHA-256 of the files' names and contents."""


@lru_cache(maxsize=4)
def read(text: str, fractions: tuple[float, ...]) -> Library:
    """The documents of a folder, or of `python`; fractions: of their text, for training, validation and held-out.

    Raises ValueError, one line, where there are too few documents to share out, or a file is no text in UTF-8.
    """
    sources = _python() if text == PYTHON and not Path(PYTHON).is_dir() else _folder(Path(text))
    digest = hashlib.sha256()
    for name, content in sources:
        digest.update(f"{name}\0{content}\0".encode())
    documents = _once([parse(name, content) for name, content in sources])
    documents = [document for document in documents if document.characters]
    if len(documents) < len(SPLITS):
        raise ValueError(
            f"tasks.text: {text} has {len(documents)} documents with prose in them, but each of {', '.join(SPLITS)} "
            f"needs its own: give a folder with at least {len(SPLITS)} files of {', '.join(ENDINGS)}"
        )
    return Library(_shared_out(documents, fractions), digest.hexdigest())


def checked(fractions: tuple[float, ...]) -> tuple[float, ...]:
    """Fractions of the text for each split. Raises ValueError where they are none."""
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three numbers above 0 that sum to 1, not {list(fractions)}")
    return tuple(fractions)


def parse(name: str, content: str) -> Document:
    """A document's prose, from plain text, reStructuredText or Markdown."""
    passages: list[tuple[str, list[tuple[str, ...]]]] = [("", [])]
    fenced = False
    for block in re.split(r"\n\s*\n", content.replace("\r\n", "\n").expandtabs()):
        fences = sum(line.lstrip().startswith(("```", "~~~")) for line in block.splitlines())
        if fenced or fences:
            fenced ^= fences % 2 == 1
            continue
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if (heading := _heading(lines)) is not None:
            passages.append((heading[0], []))
            lines = lines[heading[1] :]
        if (paragraph := _prose(lines)) is not None:
            passages[-1][1].append(paragraph)
    return Document(name, tuple(Passage(heading, tuple(found)) for heading, found in passages if found))


def _heading(lines: list[str]) -> tuple[str, int] | None:
    """A heading at the top of a block, and how many lines it takes."""
    if lines and (marked := re.fullmatch(r"#{1,6}\s+(.+?)\s*#*", lines[0])):
        return _plain(marked[1]), 1
    if len(lines) >= 3 and _UNDERLINE.fullmatch(lines[0]) and _UNDERLINE.fullmatch(lines[2]):
        return _plain(lines[1]), 3
    if len(lines) >= 2 and _UNDERLINE.fullmatch(lines[1]) and not _UNDERLINE.fullmatch(lines[0]):
        return (_plain(lines[0]), 2) if len(lines[1]) >= len(lines[0]) // 2 else None
    return None


def _prose(lines: list[str]) -> tuple[str, ...] | None:
    """A block as sentences; None where it is no prose."""
    text = _plain(_MARKER.sub("", " ".join(lines)))
    letters = sum(character.isalpha() or character == " " for character in text)
    if len(text.split()) < SHORTEST or letters < 0.88 * len(text) or not re.match(r"[\"“‘(]?[A-Z]", text):
        return None
    if not re.search(r"[.!?:][\"”’)]*$", text) or re.search(r"::=|>>>|\.\. \w|\s{2,}", text):
        return None
    return tuple(_SENTENCE.split(text))


def _plain(text: str) -> str:
    """Text without the marks of reStructuredText and Markdown."""
    text = re.sub(r":\w+:`([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?<!\w)(\*\*?)(\S|\S.*?\S)\1(?!\w)", r"\2", text)
    return " ".join(text.replace("`", "").split())


def _once(documents: list[Document]) -> list[Document]:
    """Each paragraph in the first document that has it, and in no other."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        passages = []
        for passage in document.passages:
            fresh = []
            for paragraph in passage.paragraphs:
                if (key := " ".join(paragraph).lower()) not in seen:
                    seen.add(key)
                    fresh.append(paragraph)
            if fresh:
                passages.append(Passage(passage.heading, tuple(fresh)))
        kept.append(Document(document.name, tuple(passages)))
    return kept


def _shared_out(documents: list[Document], fractions: tuple[float, ...]) -> dict[str, tuple[Document, ...]]:
    """Each document to the split that lacks most of its fraction, the longest documents first."""
    order = sorted(documents, key=lambda d: (-d.characters, hashlib.sha256(d.name.encode()).digest()))
    found: dict[str, list[Document]] = {split: [] for split in SPLITS}
    held = dict.fromkeys(SPLITS, 0)
    for document in order:
        wanted = dict(zip(SPLITS, fractions, strict=True))
        split = min(SPLITS, key=lambda s: (bool(found[s]) and held[s] / wanted[s], -wanted[s]))
        found[split].append(document)
        held[split] += document.characters
    return {split: tuple(sorted(rows, key=lambda d: d.name)) for split, rows in found.items()}


def _python() -> list[tuple[str, str]]:
    from pydoc_data.topics import topics

    return sorted(topics.items())


def _folder(folder: Path) -> list[tuple[str, str]]:
    if not folder.is_dir():
        raise ValueError(f"tasks.text: no folder {folder}: give one with {', '.join(ENDINGS)} files, or {PYTHON}")
    found = []
    for file in sorted(folder.rglob("*")):
        if file.suffix in ENDINGS and file.is_file():
            try:
                found.append((file.relative_to(folder).as_posix(), file.read_text(encoding="utf-8")))
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"tasks.text: {file} cannot be read as UTF-8 ({error})") from None
    return found
