"""Recall tasks: facts among plain sentences, then one question. Knows no model and no tokenizer.

A document is a sequence of pieces (`words.py`), so that its length in tokens of the small model is exact; any other
model reads the same text through its own tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.tasks import Sample, words
from workers.tasks.drawing import DrawnTasks, check_ranges, choose, draw

Pieces = tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Pieces that stay together in a document; `marked` holds the indices of those that state a fact."""

    pieces: Pieces
    marked: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A question, its answer's pieces, and the indices of the draft's blocks that answer it."""

    pieces: Pieces
    answer: Pieces
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Draft:
    """What a document of one kind must contain and may be asked; `ordered` blocks keep their order."""

    blocks: tuple[Block, ...]
    questions: tuple[Question, ...]
    ordered: bool = False


@dataclass(frozen=True)
class RecallConfig:
    """The recall tasks' configuration."""

    tokens: int = 1032
    """Length of a prompt, question included, in tokens of the small model."""
    kinds: tuple[str, ...] = ("residence", "colour", "passkey", "topic")
    """Kinds of task in this set; `KINDS` names them all."""
    seed: int = 0
    """Seed of all samples; another seed gives other samples."""
    facts: int = 10
    """Persons with a city, in kinds `residence`, `resident`, `colour`, `journey` and `latest`; 2 to 12."""
    moves: int = 3
    """Cities that each person is in, one after the other, in kind `latest`; 2 to 12."""
    topic_words: int = 24
    """Words of all topics together, in kind `topic`; at least 4."""


# Sentence shapes by length in tokens, full stop included; a letter stands for a class of words.
SHAPES = {
    4: "TNV.",
    5: "TANV.",
    6: "TANVD.",
    7: "TNVPtN.",
    8: "TANVPtN.",
    9: "TANVPtAN.",
    10: "TANVDPtAN.",
    11: "TNVPtN&tNV.",
    12: "TANVPtN&tNV.",
}
CLASSES = {
    "T": (" The",),
    "t": (" the",),
    "&": (" and",),
    ".": (words.STOP,),
    "N": words.spaced(words.NOUNS),
    "V": words.spaced(words.VERBS),
    "A": words.spaced(words.ADJECTIVES),
    "D": words.spaced(words.ADVERBS),
    "P": words.spaced(words.PREPOSITIONS),
}
LONGEST, SHORTEST = 12, 4
OPENING_TOKENS = 4  # attention sinks; an oracle without them loses 0.05 and more


def sentence(rng: random.Random, length: int) -> Pieces:
    """A sentence without a fact, `length` (4 to 12) tokens long."""
    return tuple(choose(rng, CLASSES[letter]) for letter in SHAPES[length])


def about(rng: random.Random, word: str) -> Block:
    """A sentence whose subject is `word`."""
    shape = choose(rng, ("TNV.", "TANV.", "TNVPtN."))
    at = shape.index("N")
    pieces = [choose(rng, CLASSES[letter]) for letter in shape]
    pieces[at] = " " + word
    return Block(tuple(pieces), (at,))


def fact(piece: str) -> Block:
    """A fact of one piece, as a whole sentence."""
    return Block((piece, words.STOP), (0,))


def where(name: str, city: str, block: int) -> Question:
    """The question for a person's (last) city, which a block answers."""
    return Question(("\nWhere", " is", words.asked(name)), (" " + city,), (block,))


def residence(rng: random.Random, config: RecallConfig) -> Draft:
    """Key-value recall: "Where is Anna?" among persons with one city each."""
    pairs = list(zip(draw(rng, words.NAMES, config.facts), draw(rng, words.CITIES, config.facts), strict=True))
    blocks = tuple(fact(words.residence(*pair)) for pair in pairs)
    return Draft(blocks, tuple(where(name, city, i) for i, (name, city) in enumerate(pairs)))


def resident(rng: random.Random, config: RecallConfig) -> Draft:
    """Reverse recall: "Who is in Paris?" among persons with one city each."""
    pairs = list(zip(draw(rng, words.NAMES, config.facts), draw(rng, words.CITIES, config.facts), strict=True))
    blocks = tuple(fact(words.residence(*pair)) for pair in pairs)
    questions = (
        Question(("\nWho", " is", " in", words.asked(city)), (" " + name,), (i,))
        for i, (name, city) in enumerate(pairs)
    )
    return Draft(blocks, tuple(questions))


def colour(rng: random.Random, config: RecallConfig) -> Draft:
    """Key-value recall in another family: "What colour has Paris?" among cities with one colour each."""
    pairs = [(city, choose(rng, words.COLOURS)) for city in draw(rng, words.CITIES, config.facts)]
    blocks = tuple(fact(words.paint(*pair)) for pair in pairs)
    questions = (
        Question(("\nWhat", " colour", " has", words.asked(city)), (" " + shade,), (i,))
        for i, (city, shade) in enumerate(pairs)
    )
    return Draft(blocks, tuple(questions))


def journey(rng: random.Random, config: RecallConfig) -> Draft:
    """Two hops: "What colour has the city of Anna?", from the person's city and that city's colour."""
    names, cities = draw(rng, words.NAMES, config.facts), draw(rng, words.CITIES, config.facts)
    shades = [choose(rng, words.COLOURS) for _ in cities]
    blocks = [fact(words.residence(name, city)) for name, city in zip(names, cities, strict=True)]
    blocks += [fact(words.paint(city, shade)) for city, shade in zip(cities, shades, strict=True)]
    question = ("\nWhat", " colour", " has", " the", " city", " of")
    questions = (
        Question((*question, words.asked(name)), (" " + shade,), (i, i + config.facts))
        for i, (name, shade) in enumerate(zip(names, shades, strict=True))
    )
    return Draft(tuple(blocks), tuple(questions))


def latest(rng: random.Random, config: RecallConfig) -> Draft:
    """The last of several values: "Where is Anna?" where each person moves from city to city."""
    names = draw(rng, words.NAMES, max(config.facts // config.moves, 2))
    order = draw(rng, tuple(name for name in names for _ in range(config.moves)), len(names) * config.moves)
    routes = {name: draw(rng, words.CITIES, config.moves) for name in names}
    blocks, last = [], {}
    for i, name in enumerate(order):
        last[name] = (routes[name].pop(), i)
        blocks.append(fact(words.residence(name, last[name][0])))
    return Draft(tuple(blocks), tuple(where(name, *last[name]) for name in names), ordered=True)


def passkey(rng: random.Random, config: RecallConfig) -> Draft:
    """A key of three tokens, stated once: "What is the passkey?"."""
    key = tuple(" " + choose(rng, options) for options in words.PASSKEY)
    block = Block((" The", " passkey", " is", *key, words.STOP), (1, 3, 4, 5))
    return Draft((block,), (Question(("\nWhat", " is", " the", words.asked("passkey")), key, (0,)),))


def topic(rng: random.Random, config: RecallConfig) -> Draft:
    """Majority: "What is the topic?" where one topic has more words than each of three others."""
    main, *others = draw(rng, tuple(words.TOPICS), 4)
    most, lead = 2, max(1, config.topic_words // 8)
    while most < -((most - config.topic_words) // 3) + lead:
        most += 1
    rows = [main] * most + [others[i % 3] for i in range(config.topic_words - most)]
    blocks = tuple(about(rng, choose(rng, words.TOPICS[name])) for name in draw(rng, tuple(rows), len(rows)))
    question = Question(("\nWhat", " is", " the", words.asked("topic")), (" " + main,), tuple(range(len(rows))))
    return Draft(blocks, (question,))


KINDS: dict[str, Callable[[random.Random, RecallConfig], Draft]] = {
    kind.__name__: kind for kind in (residence, resident, colour, journey, latest, passkey, topic)
}


@dataclass
class Page:
    """A document in the making: its pieces so far, and where each block of each draft starts."""

    pieces: list[str] = field(default_factory=lambda: [words.OPENING])
    starts: dict[tuple[int, int], int] = field(default_factory=dict)


def compose(rng: random.Random, drafts: list[Draft], tokens: int) -> Page:
    """A document of exactly `tokens` pieces, the drafts' blocks spread over plain sentences.

    Raises ValueError if the blocks do not fit.
    """
    room = tokens - 1 - sum(len(block.pieces) for draft in drafts for block in draft.blocks)
    if room < 0 or 0 < room < SHORTEST:
        raise ValueError(f"{tokens} tokens cannot hold this task's facts: raise tokens or lower its densities")
    lengths = []
    while room > LONGEST + SHORTEST:
        lengths.append(SHORTEST + int(rng.random() * (LONGEST - SHORTEST + 1)))
        room -= lengths[-1]
    if room > LONGEST:
        lengths.append(room // 2)
        room -= room // 2
    if room:
        lengths.append(room)
    places = []
    for d, draft in enumerate(drafts):
        slots = [rng.random() for _ in draft.blocks]
        places += [(slot, d, b) for b, slot in enumerate(sorted(slots) if draft.ordered else slots)]
    places += [((i + 0.5) / len(lengths), -1, length) for i, length in enumerate(lengths)]
    page = Page()
    for _, d, b in sorted(places):
        if d >= 0:
            page.starts[d, b] = len(page.pieces)
        page.pieces += sentence(rng, b) if d < 0 else drafts[d].blocks[b].pieces
    return page


class RecallTasks(DrawnTasks[Sample]):
    """The recall tasks of one configuration (a `TaskSet`); each prompt is exactly `config.tokens` tokens long."""

    separates = True
    known = KINDS
    noun = "recall task"

    def __init__(self, config: RecallConfig) -> None:
        """Raises ValueError for an unknown kind or a density out of its range."""
        super().__init__(config.kinds, config.seed)
        check_ranges(config, {"facts": (2, 12), "moves": (2, 12), "topic_words": (4, 1000)})
        self.config = config

    def content(self, sample: Sample) -> bytes:
        """The prompt."""
        return sample.prompt.encode()

    def draw(self, rng: random.Random, task: str, split: str, index: int) -> Sample:
        """A document with one of its questions. Raises ValueError if the facts leave no room."""
        draft = KINDS[task](rng, self.config)
        question = draft.questions[int(rng.random() * len(draft.questions))]
        page = compose(rng, [draft], self.config.tokens - len(question.pieces))
        marked = {*range(OPENING_TOKENS), *range(len(page.pieces), len(page.pieces) + len(question.pieces))}
        marked |= {page.starts[0, b] + at for b in question.blocks for at in draft.blocks[b].marked}
        ends, end = [], 0
        for piece in (*page.pieces, *question.pieces):
            ends.append(end := end + len(piece))
        facts = sorted((start, start + len(draft.blocks[b].pieces) - 1) for (_, b), start in page.starts.items())
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt="".join((*page.pieces, *question.pieces)),
            answers=("".join(question.answer).strip(),),
            relevant=tuple((ends[at - 1] if at else 0, ends[at]) for at in sorted(marked)),
            context=ends[len(page.pieces) - 1],
            facts=tuple((ends[first - 1], ends[last]) for first, last in facts),
        )
