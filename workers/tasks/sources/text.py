"""Any text as a task, without labels: to go on with it, or to recite a passage of it.

A sample is a window of a split's documents, as long as asked for. *Continue*: the words that follow; what counts is
their log-probability (`fitness.measure: logprob`), the score being the first words alone. *Recite*: a passage of the
window, named by its first words, to be repeated (what KVzip, arXiv 2505.23416, calls reconstruction). Knows no model;
a tokenizer only counts.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import random
import re
from dataclasses import dataclass

from workers.tasks import SPLITS, Sample, documents
from workers.tasks.documents import PYTHON
from workers.tasks.drawing import check_ranges, choose
from workers.tasks.lengths import Lengths
from workers.tasks.prose import JOINTS, Frame, fill, stream
from workers.tasks.source import Source

KINDS = ("continue", "recite")
OPENING = "Read the following text. It is followed by a question about it.\n\n"
NAMING = 6
"""Words that name a passage."""
STEP = 64
"""Sentences that a window is made of at a time."""
FIRST = 4
"""Words of a continuation that the score asks for; no model can know many."""


@dataclass(frozen=True)
class TextConfig:
    """The text tasks' configuration."""

    tokens: int = 2000
    """Longest prompt in tokens, answer prefix included; what a chat template writes around it comes on top."""
    tokenizer: str | None = None
    """What counts them: a folder, Hub repository or fetched name as in `model.path`, or the path of a GGUF file; None:
    an estimate, for tokenizers with large vocabularies."""
    text: str = PYTHON
    """Folder of .txt, .md and .rst files, or `python`: the documentation topics in Python's standard library."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of task in this set."""
    seed: int = 0
    """Seed of all samples; another seed gives other samples."""
    fractions: tuple[float, ...] = (0.5, 0.2, 0.3)
    """Shares of the text for training, validation and held-out samples."""
    continued: int = 80
    """Words of a continuation that are scored by their log-probability; 4 to 1000."""
    recited: int = 30
    """Words of a passage to be recited; 4 to 1000."""


class TextTasks(Source):
    """The text tasks of one configuration (a `TaskSet`)."""

    def __init__(self, config: TextConfig) -> None:
        """Reads the text. Raises ValueError, one line, for an unknown kind, a number out of its range, or too little
        text."""
        for kind in config.kinds:
            if kind not in KINDS:
                raise ValueError(f"unknown text task {kind!r}: choose among {', '.join(KINDS)}")
        check_ranges(config, {"tokens": (64, 10**9), "continued": (4, 1000), "recited": (4, 1000)})
        self.config = config
        self._library = documents.read(config.text, documents.checked(config.fractions))
        self._lengths = Lengths(config.tokenizer)

    @property
    def locates(self) -> bool:  # type: ignore[override]  # what a class says of all its sets is here a set's own
        """Whether all its kinds say where the answer stands: what follows a text stands nowhere in it."""
        return "continue" not in self.config.kinds

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
                f"unknown text task or split {task!r}, {split!r}: {list(self.config.kinds)}, {list(SPLITS)}"
            )
        seed = hashlib.sha256(f"{self.config.seed}/{task}/{split}/{index}".encode()).digest()
        rng = random.Random(int.from_bytes(seed, "big"))
        return (self._recite if task == "recite" else self._continue)(rng, split, index)

    def _continue(self, rng: random.Random, split: str, index: int) -> Sample:
        config, lengths = self.config, self._lengths
        text, fitting, ends = "", 0, [0]
        sentences = stream(rng, self._library.splits[split], headings=False)
        while len(ends) - fitting < config.continued:  # words behind the window
            for level, sentence in itertools.islice(sentences, STEP):
                text += (JOINTS[level] if text else "") + sentence
            ends = [word.end() for word in re.finditer(r"\S+", text)]
            fitting = bisect.bisect_right(ends, config.tokens, key=lambda end: lengths.count(text[:end]))
        cut = ends[fitting - 1]
        following = text[cut : ends[fitting + config.continued - 1]]
        first = " ".join(following.split()[:FIRST])
        return Sample(
            task="continue",
            split=split,
            index=index,
            prompt=text[:cut],
            answers=(following.lstrip(), first),
            relevant=(),
            metric="same_words",
            max_new_tokens=lengths.count(f" {first}") + 2,
            delimiter=following[: len(following) - len(following.lstrip())],
            chat=False,
        )

    def _recite(self, rng: random.Random, split: str, index: int) -> Sample:
        config = self.config
        longest = NAMING + config.recited
        # The question is not known before the text is: the frame has room for the longest word in each of its places.
        question = f'\n\nRepeat the passage of the text that begins with "{"extraordinary " * NAMING}".'
        frame = Frame(OPENING, f"{question}\n{'extraordinary ' * NAMING}", config.tokens, self._lengths)
        window = fill(rng, stream(rng, self._library.splits[split], headings=False), [], frame).text
        words = list(re.finditer(r"\S+", window))
        starts = [
            i
            for i in range(1, len(words) - longest)
            if words[i - 1][0][-1] in ".!?" and "\n" not in window[words[i].start() : words[i + longest - 1].end()]
        ] or list(range(max(len(words) - longest, 0)))
        if not starts:
            raise ValueError(f"tasks.tokens is {config.tokens}, too few for a passage of {longest} words")
        unique = [i for i in starts if window.count(_span(window, words, i, NAMING)) == 1]
        at = choose(rng, unique or starts)
        named, answer = _span(window, words, at, NAMING), _span(window, words, at + NAMING, config.recited)
        asked = f'\n\nRepeat the passage of the text that begins with "{named}".'
        prompt = OPENING + window + asked
        start, end = words[at].start() + len(OPENING), words[at + longest - 1].end() + len(OPENING)
        return Sample(
            task="recite",
            split=split,
            index=index,
            prompt=prompt,
            answers=(answer,),
            relevant=((0, len(OPENING)), (start, end), (len(prompt) - len(asked), len(prompt))),
            metric="same_words",
            prefix=named,
        )


def _span(text: str, words: list[re.Match[str]], first: int, count: int) -> str:
    """`count` words of a text, as they stand there."""
    return text[words[first].start() : words[first + count - 1].end()]
