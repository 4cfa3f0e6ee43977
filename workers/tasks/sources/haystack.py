"""RULER's forms in real prose, at any length: needles, chains of variables, word counts, look-ups in the text itself.

A sample is a text of a model's own length in tokens, then one question, with the answer's first words given (RULER's
answer prefix). Documents are split: training, validation and held-out samples never share one. With the defaults their
needles are worded differently, too. Knows no model; a tokenizer only counts.

Source: NVIDIA/RULER (arXiv 2404.06654); its texts are essays, its wording the first of `needles.WORDINGS`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from workers.tasks import SPLITS, Sample, Turn, documents, needles
from workers.tasks.documents import Document, Passage
from workers.tasks.drawing import check_ranges, choose, draw
from workers.tasks.lengths import Lengths
from workers.tasks.prose import PARAGRAPH, PASSAGE, Frame, Insert, fill, stream
from workers.tasks.source import Source

OPENING = "Read the following text. It is followed by a question about it.\n\n"
COPIED = 12
"""Words of the text that a look-up asks for, at most."""
FEWEST = 4
"""Definitions, or passages with headings, that each split needs for look-ups."""
EXTRA_TOKENS = 8
"""More tokens than the reference has for answers that may be phrased in several ways: lists of values."""

_TERM = r"(?:An?|The) (?!following)(?:[\w\"“”.-]+ ){1,4}?"
_DEFINITION = re.compile(rf"^({_TERM}(?:is|are)) ((?:an?|the|used|called|one|either|executed)\b.*)$")


@dataclass(frozen=True)
class HaystackConfig:
    """The haystack tasks' configuration."""

    tokens: int = 2000
    """Longest prompt in tokens, answer prefix included; what a chat template writes around it comes on top."""
    shortest: int | None = None
    """Where given, each sample is of a length of its own, between this and `tokens`."""
    tokenizer: str | None = None
    """What counts them: a folder, Hub repository or fetched name as in `model.path`, or the path of a GGUF file; None:
    an estimate, for tokenizers with large vocabularies."""
    text: str = documents.PYTHON
    """Folder of .txt, .md and .rst files, or `python`: the documentation topics in Python's standard library."""
    kinds: tuple[str, ...] = (
        "single",
        "multikey",
        "multivalue",
        "multiquery",
        "tracking",
        "common",
        "frequent",
        "definition",
        "heading",
    )
    """Kinds of task in this set; the default names all that ask one question, which leaves out `interview`."""
    seed: int = 0
    """Seed of all samples; another seed gives other samples."""
    fractions: tuple[float, ...] = (0.5, 0.2, 0.3)
    """Shares of the text for training, validation and held-out samples."""
    wordings: Literal["apart", "shared"] = "apart"
    """Whether training, validation and held-out samples word their needles differently, or all in all ways."""
    needles: int = 8
    """Needles in kind `multikey`, of which one is asked for; 2 to 40."""
    values: int = 4
    """Values of one key, in kind `multivalue`; 2 to 12."""
    queries: int = 4
    """Keys that are asked for, in kind `multiquery`, among twice as many; 2 to 12."""
    hops: int = 3
    """Variables that take their value from another one, in kind `tracking`; 1 to 12."""
    words: int = 3
    """Words that are asked for, in kinds `common` and `frequent`; 1 to 8."""


@dataclass(frozen=True)
class Draft:
    """What is put into a text, and what is asked about it."""

    question: str
    prefix: str
    answer: str
    inserts: list[Insert] = field(default_factory=list)
    without: frozenset[Passage] = frozenset()
    """Passages that the text must not have beside its inserts."""
    ordered: bool = False
    metric: str = "string_match_list"
    headings: bool = False
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class LookUp:
    """A passage, and what of it can be asked for."""

    passage: Passage
    paragraph: tuple[str, ...]
    """The paragraph that answers."""
    sentence: int
    """Which of its sentences."""
    known: str
    """What the question names: the sentence's beginning up to its verb, or the heading."""


def fact(wording: needles.Wording, key: str, value: str, asked: bool) -> Insert:
    """A needle."""
    text = wording.fact.format(key=key, value=value)
    return Insert(text, marked=((0, len(text)),) if asked else None)


def one(rng: random.Random, wording: needles.Wording, count: int) -> Draft:
    """`count` keys with a value each, one of them asked for."""
    keys, values = needles.keys(rng, count), needles.values(rng, wording, count)
    inserts = [fact(wording, key, value, i == 0) for i, (key, value) in enumerate(zip(keys, values, strict=True))]
    return Draft(wording.one.format(key=keys[0]), wording.one_prefix.format(key=keys[0]), values[0], inserts)


def single(rng: random.Random, wording: needles.Wording, config: HaystackConfig) -> Draft:
    """One needle."""
    return one(rng, wording, 1)


def multikey(rng: random.Random, wording: needles.Wording, config: HaystackConfig) -> Draft:
    """One needle among others like it."""
    return one(rng, wording, config.needles)


def multivalue(rng: random.Random, wording: needles.Wording, config: HaystackConfig) -> Draft:
    """All values of one key, in the order of the text."""
    key, values = needles.keys(rng, 1)[0], needles.values(rng, wording, config.values)
    inserts = [fact(wording, key, value, True) for value in values]
    return Draft(
        wording.all.format(key=key), wording.all_prefix.format(key=key), ", ".join(values), inserts, ordered=True
    )


def multiquery(rng: random.Random, wording: needles.Wording, config: HaystackConfig) -> Draft:
    """The values of several keys, in the question's order, among as many that nobody asks for."""
    keys = needles.keys(rng, 2 * config.queries)
    values = needles.values(rng, wording, 2 * config.queries)
    inserts = [
        fact(wording, key, value, i < config.queries) for i, (key, value) in enumerate(zip(keys, values, strict=True))
    ]
    asked = needles.spoken(keys[: config.queries])
    answer = ", ".join(values[: config.queries])
    return Draft(wording.all.format(key=asked), wording.all_prefix.format(key=asked), answer, inserts)


def tracking(rng: random.Random, wording: needles.Wording, config: HaystackConfig) -> Draft:
    """All variables that have a value, one after the other assigned from the last; another chain has another value."""
    names = needles.names(rng, 2 * (config.hops + 1))
    inserts, chains = [], [names[: config.hops + 1], names[config.hops + 1 :]]
    values = needles.values(rng, needles.WORDINGS[2], 2)  # numbers of five digits, as RULER's
    rows = [(c, i) for c in range(2) for i in range(config.hops + 1)]
    left = {0: 0, 1: 0}
    for c, _ in draw(rng, rows, len(rows)):  # the chains are interleaved, each in its order
        at = left[c]
        left[c] += 1
        text = f"VAR {chains[c][at]} = {values[c] if at == 0 else f'VAR {chains[c][at - 1]}'}."
        inserts.append(Insert(text, marked=((0, len(text)),) if c == 0 else None))
    return Draft(
        f"Find all variables that are assigned the value {values[0]} in the text above.",
        f"{len(chains[0])} variables are assigned the value {values[0]}; they are",
        ", ".join(chains[0]),
        inserts,
        ordered=True,
    )


def common(rng: random.Random, wording: needles.Wording, config: HaystackConfig) -> Draft:
    """The words that are listed four times, among words that are listed once."""
    words = draw(rng, needles.NOUNS, 5 * config.words)
    asked = words[: config.words]
    rows = [word for word in asked for _ in range(4)] + words[config.words :]
    inserts = [_word("The word of the page is {}.", word, asked) for word in draw(rng, rows, len(rows))]
    question = f"Which {config.words} words are most often given as the word of the page?"
    prefix = f"The {config.words} words that are most often the word of the page are"
    return Draft(question, prefix, ", ".join(asked), inserts)


def frequent(rng: random.Random, wording: needles.Wording, config: HaystackConfig) -> Draft:
    """The most frequent of made-up words, whose numbers fall as Zipf's law has it (RULER's coded text)."""
    words = needles.names(rng, 3 * config.words)
    asked = words[: config.words]
    most = 4 * config.words
    rows = [word for rank, word in enumerate(words, 1) for _ in range(max(most // rank, 1))]
    inserts = [_word("{}.", word, asked) for word in draw(rng, rows, len(rows))]
    question = f"What are the {config.words} most frequent words in capital letters that have no meaning?"
    return Draft(question, f"The {config.words} most frequent of these words are", ", ".join(asked), inserts)


def _word(form: str, word: str, asked: list[str]) -> Insert:
    text = form.format(word)
    return Insert(text, marked=((0, len(text)),) if word in asked else None)


def definition(rng: random.Random, found: LookUp) -> Draft:
    """What the text says that a term is."""
    sentence = found.paragraph[found.sentence]
    begun = " ".join(found.paragraph[: found.sentence])
    start = len(begun) + (1 if begun else 0)
    insert = Insert(" ".join(found.paragraph), PARAGRAPH, ((start, start + len(sentence)),))
    rest = sentence[len(found.known) :].split()[:COPIED]
    term = found.known.rsplit(" ", 1)[0]
    verb = found.known.rsplit(" ", 1)[1]
    question = f"What {verb} {term[:1].lower()}{term[1:]}, according to the text? Answer in the text's own words."
    return Draft(question, found.known, " ".join(rest), [insert], frozenset([found.passage]), metric="same_words")


def heading(rng: random.Random, found: LookUp) -> Draft:
    """How the passage under a heading begins."""
    text = f"{found.known}\n\n" + "\n\n".join(" ".join(paragraph) for paragraph in found.passage.paragraphs[:2])
    words = found.paragraph[0].split()
    start = len(found.known) + 2
    asked = " ".join(found.paragraph).split()[: COPIED + 3]
    insert = Insert(text, PASSAGE, ((0, start + len(" ".join(asked))),))
    question = f'How does the passage under the heading "{found.known}" begin? Repeat its first words.'
    prefix = f'The passage under the heading "{found.known}" begins: {" ".join(words[:3])}'
    answer = " ".join(asked[3:])
    return Draft(question, prefix, answer, [insert], frozenset([found.passage]), metric="same_words", headings=True)


MADE: dict[str, Callable[[random.Random, needles.Wording, HaystackConfig], Draft]] = {
    kind.__name__: kind for kind in (single, multikey, multivalue, multiquery, tracking, common, frequent)
}
"""Kinds whose facts are put into the text."""
LOOKED_UP: dict[str, Callable[[random.Random, LookUp], Draft]] = {k.__name__: k for k in (definition, heading)}
"""Kinds that the text itself answers."""
INTERVIEW = "interview"
"""A kind that puts the facts of several others into one text, and asks for each in turn: several answers for the price
of one reading, and so the least noise for its time when a memory is evolved."""
INTERVIEWED = ("single", "multikey", "multivalue", "definition")
"""The kinds that it is made of."""


def interview(rng: random.Random, drafts: list[Draft]) -> Draft:
    """All of the drafts in one text, in random order, each asked about in turn."""
    first, *rest = draw(rng, drafts, len(drafts))
    queues = [list(draft.inserts) for draft in drafts]
    order = draw(rng, [i for i, queue in enumerate(queues) for _ in queue], sum(map(len, queues)))
    return dataclasses.replace(
        first,
        inserts=[queues[i].pop(0) for i in order],  # mixed, and those of one draft in their order
        without=frozenset().union(*(draft.without for draft in drafts)),
        ordered=True,
        turns=tuple(Turn(draft.question, draft.prefix, draft.answer) for draft in rest),
    )


class HaystackTasks(Source):
    """The haystack tasks of one configuration (a `TaskSet`)."""

    locates = True
    separates = True

    def __init__(self, config: HaystackConfig) -> None:
        """Reads the text. Raises ValueError, one line, for an unknown kind, a number out of its range, or too little
        text."""
        for kind in config.kinds:
            if kind not in (known := (*MADE, *LOOKED_UP, INTERVIEW)):
                raise ValueError(f"unknown haystack task {kind!r}: choose among {', '.join(known)}")
        counts = {"needles": (2, 40), "values": (2, 12), "queries": (2, 12), "hops": (1, 12), "words": (1, 8)}
        check_ranges(config, {"tokens": (64, 10**9), **counts})
        if config.shortest is not None:
            check_ranges(config, {"shortest": (64, config.tokens)})
        self.config = config
        self._library = documents.read(config.text, documents.checked(config.fractions))
        self._lengths = Lengths(config.tokenizer)
        self._look_ups = {
            (kind, split): _FINDERS[kind](self._library.splits[split])
            for kind in LOOKED_UP
            if kind in config.kinds or (INTERVIEW in config.kinds and kind in INTERVIEWED)
            for split in SPLITS
        }
        for (kind, split), found in self._look_ups.items():
            if len(found) < FEWEST:
                raise ValueError(
                    f"kind {kind}: {config.text} has {len(found)} places for it in its {split} documents, at least "
                    f"{FEWEST} are needed: give more text, or leave the kind out"
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The configured kinds."""
        return tuple(self.config.kinds)

    def fingerprint(self, task: str) -> str:
        """Names the text, and the tokenizer that counts."""
        return f"{self._library.fingerprint}{self._lengths.fingerprint()}"

    def sample(self, task: str, split: str, index: int) -> Sample:
        """Sample `index` of a task's split: a prompt of `config.tokens` tokens, or a few less.

        Raises ValueError for an unknown task or split, and where what is asked leaves no room.
        """
        if task not in self.config.kinds or split not in SPLITS:
            raise ValueError(
                f"unknown haystack task or split {task!r}, {split!r}: {list(self.config.kinds)}, {list(SPLITS)}"
            )
        seed = hashlib.sha256(f"{self.config.seed}/{task}/{split}/{index}".encode()).digest()
        rng = random.Random(int.from_bytes(seed, "big"))
        if task == INTERVIEW:
            draft = interview(rng, [self._draft(rng, kind, split) for kind in INTERVIEWED])
        else:
            draft = self._draft(rng, task, split)
        return self._sample(rng, draft, task, split, index)

    def _draft(self, rng: random.Random, kind: str, split: str) -> Draft:
        if kind in LOOKED_UP:
            return LOOKED_UP[kind](rng, choose(rng, self._look_ups[kind, split]))
        choice = needles.APART[split] if self.config.wordings == "apart" else needles.WORDINGS
        return MADE[kind](rng, choose(rng, choice), self.config)

    def _sample(self, rng: random.Random, draft: Draft, task: str, split: str, index: int) -> Sample:
        asked = f"\n\n{draft.question}"
        tokens, shortest = self.config.tokens, self.config.shortest
        if shortest is not None:
            tokens = shortest + int(rng.random() * (tokens - shortest + 1))
        frame = Frame(OPENING, f"{asked}\n{draft.prefix}", tokens, self._lengths)
        sentences = stream(rng, self._library.splits[split], draft.headings, draft.without)
        filled = fill(rng, sentences, draft.inserts, frame, draft.ordered)
        prompt = OPENING + filled.text + asked

        def moved(spans: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            return tuple((first + len(OPENING), last + len(OPENING)) for first, last in spans)

        whole = draft.metric == "same_words"  # a copy has one form, a list has several
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt=prompt,
            answers=(draft.answer,),
            relevant=((0, len(OPENING)), *sorted(moved(filled.marked)), (len(prompt) - len(asked), len(prompt))),
            metric=draft.metric,
            max_new_tokens=None if whole else self._lengths.count(f" {draft.answer}") + EXTRA_TOKENS,
            prefix=draft.prefix,
            turns=draft.turns,
            context=len(prompt) - len(asked),
            facts=moved(filled.facts),
        )


def definitions(found: tuple[Document, ...]) -> list[LookUp]:
    """Sentences that say what something is, each of another term."""
    places: dict[str, list[LookUp]] = {}
    for document in found:
        for passage in document.passages:
            for paragraph in passage.paragraphs:
                for at, sentence in enumerate(paragraph):
                    match = _DEFINITION.match(sentence)
                    if match and len(match[2].split()) >= 5:
                        places.setdefault(match[1].lower(), []).append(LookUp(passage, paragraph, at, match[1]))
    return [rows[0] for rows in places.values() if len(rows) == 1]


def headings(found: tuple[Document, ...]) -> list[LookUp]:
    """Passages with a heading that no other one has, whose first paragraph is long enough to ask for."""
    places: dict[str, list[LookUp]] = {}
    for document in found:
        for passage in document.passages:
            words = " ".join(passage.paragraphs[0]).split()
            if passage.heading:
                row = places.setdefault(passage.heading.lower(), [])
                row.append(LookUp(passage, passage.paragraphs[0], 0, passage.heading))
                if len(words) < COPIED + 3:
                    row.append(row[0])  # too short to ask for
    return [rows[0] for rows in places.values() if len(rows) == 1]


_FINDERS: dict[str, Callable[[tuple[Document, ...]], list[LookUp]]] = {"definition": definitions, "heading": headings}
