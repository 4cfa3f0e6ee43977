"""A text of a wanted length in tokens: passages of real documents, with pieces put in between. Knows no questions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Set
from dataclasses import dataclass

from workers.tasks.documents import Document, Passage
from workers.tasks.lengths import Lengths

SENTENCE, PARAGRAPH, PASSAGE = 0, 1, 2
"""What a sentence begins, beside itself."""
JOINTS = {SENTENCE: " ", PARAGRAPH: "\n\n", PASSAGE: "\n\n"}


@dataclass(frozen=True)
class Insert:
    """A text that is put into the prose."""

    text: str
    level: int = SENTENCE
    """In front of what it may stand: any sentence, a paragraph, or a passage."""
    marked: tuple[tuple[int, int], ...] | None = None
    """Spans of it that answer the question; None: it does not answer it."""


@dataclass(frozen=True)
class Filled:
    """A finished text."""

    text: str
    marked: tuple[tuple[int, int], ...]
    """Spans of what answers the question."""
    facts: tuple[tuple[int, int], ...]
    """Spans of everything that was put in."""


@dataclass(frozen=True)
class Frame:
    """What stands around a text, and how long all of it may be."""

    before: str
    after: str
    tokens: int
    lengths: Lengths

    def count(self, text: str) -> int:
        """Tokens of the whole with that text."""
        return self.lengths.count(self.before + text + self.after)


def stream(
    rng: random.Random, documents: tuple[Document, ...], headings: bool, without: Set[Passage] = frozenset()
) -> Iterator[tuple[int, str]]:
    """Sentences of the documents and what each begins, for as long as anyone asks.

    It starts at a random passage and reads on to its document's end, then at another; none comes again before all have.
    Without headings it starts inside its first passage, so that there are as many beginnings as sentences. headings:
    whether they are written above their passages; those without one are then left out. without: passages that never
    come.
    """
    usable = [
        [p for p in document.passages if p not in without and (p.heading or not headings)] for document in documents
    ]
    skipped = rng.random() if not headings else 0.0
    places = [(d, p) for d, passages in enumerate(usable) for p in range(len(passages))]
    left: set[tuple[int, int]] = set()
    while places:
        if not left:
            left = set(places)
        order = sorted(left)
        d, p = order[int(rng.random() * len(order))]
        while (d, p) in left:
            left.remove((d, p))
            passage = usable[d][p]
            level = PASSAGE
            if headings:
                yield level, passage.heading
                level = PARAGRAPH
            rows = [(paragraph, s) for paragraph in passage.paragraphs for s in range(len(paragraph))]
            for paragraph, s in rows[int(skipped * len(rows)) :]:
                yield (level if s == 0 else SENTENCE), paragraph[s]
                level = PARAGRAPH
            skipped = 0.0
            p += 1


def fill(
    rng: random.Random,
    sentences: Iterator[tuple[int, str]],
    inserts: list[Insert],
    frame: Frame,
    ordered: bool = False,
) -> Filled:
    """A text that fills the frame but for a few tokens, with the inserts at random places; its end may be cut off.

    ordered: whether they stand in their order. Raises ValueError where they alone do not fit.
    """
    slots = [rng.random() for _ in inserts]
    if ordered:
        slots.sort()
    room = frame.tokens - frame.count("") - sum(frame.lengths.count(f" {insert.text}") for insert in inserts)
    rows: list[tuple[int, str]] = []
    while room > 0 and (following := next(sentences, None)) is not None:
        room -= frame.lengths.part(JOINTS[following[0]] + following[1])
        rows.append(following)
    while True:
        filled = _rendered(rows, inserts, slots)
        over = frame.count(filled.text) - frame.tokens
        if over <= 0:
            return filled
        if not rows:
            raise ValueError(f"tasks.tokens is {frame.tokens}, too few for what is asked: give {over} more or ask less")
        rows = _shorter(rows, over, frame.lengths)


def _shorter(rows: list[tuple[int, str]], over: int, lengths: Lengths) -> list[tuple[int, str]]:
    """The rows without `over` tokens or a few more at their end; a last sentence goes word by word."""
    *rows, (level, sentence) = rows
    words = sentence.split()
    left = lengths.count(sentence) - over
    while words and lengths.count(" ".join(words)) > left:
        words.pop()
    return [*rows, (level, " ".join(words))] if words else rows


def _rendered(rows: list[tuple[int, str]], inserts: list[Insert], slots: list[float]) -> Filled:
    """The text of rows and inserts. Slots, 0 to 1, say where each insert stands."""
    places = sorted((_place(rows, slot, inserts[i].level), slot, i) for i, slot in enumerate(slots))
    text, marked, facts, following = "", [], [], 0
    for at in range(len(rows) + 1):
        while following < len(places) and places[following][0] == at:
            insert = inserts[places[following][2]]
            joint = JOINTS[max(insert.level, rows[at][0] if at < len(rows) else SENTENCE)] if text else ""
            start = len(text) + len(joint)
            text += joint + insert.text
            facts.append((start, len(text)))
            marked += [(start + first, start + last) for first, last in insert.marked or ()]
            following += 1
        if at < len(rows):
            level, sentence = rows[at]
            text += (JOINTS[level] if text else "") + sentence
    return Filled(text, tuple(marked), tuple(facts))


def _place(rows: list[tuple[int, str]], slot: float, level: int) -> int:
    """The row in front of which an insert stands: the first that may follow it, from its slot on, or the end."""
    at = int(slot * (len(rows) + 1))
    while at < len(rows) and rows[at][0] < level:
        at += 1
    return at
