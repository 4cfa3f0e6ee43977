"""Depth: one fact among sentences of no use, near the beginning of a text, in its middle or near its end.

Built from the words of the recall tasks, which the shipped model can read.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from workers.tasks import Sample, words
from workers.tasks.drawing import DrawnTasks, choose

DEPTHS = {"early": 0.1, "middle": 0.5, "late": 0.9}
"""The tasks: which part of the sentences comes before the fact that is asked for."""


@dataclass(frozen=True)
class DepthConfig:
    """The options of the source, as a job gives them beside `source: depth`."""

    sentences: int = 240
    """Sentences of each text; one is about 4 tokens of the small model."""
    people: int = 8
    """Facts in each text, at most 12; one of them is asked for, the others stand anywhere."""
    seed: int = 0
    """Seed of all samples; another seed gives other samples."""


class DepthTasks(DrawnTasks[Sample]):
    """Samples drawn by code (a `TaskSet`); the base class keeps the splits apart and makes each a pure function."""

    known = DEPTHS
    noun = "depth"

    def __init__(self, config: DepthConfig) -> None:
        """Takes all three depths."""
        super().__init__(tuple(DEPTHS), config.seed)
        self.config = config

    def content(self, sample: Sample) -> bytes:
        """The prompt: no two splits share one."""
        return sample.prompt.encode()

    def draw(self, rng: random.Random, task: str, split: str, index: int) -> Sample:
        """A text and its question."""
        names, cities = list(words.NAMES), list(words.CITIES)
        facts = []
        for _ in range(self.config.people):
            facts.append((names.pop(int(rng.random() * len(names))), cities.pop(int(rng.random() * len(cities)))))
        text = [f" The {choose(rng, words.NOUNS)} {choose(rng, words.VERBS)}." for _ in range(self.config.sentences)]
        for name, city in facts[1:]:
            text.insert(int(rng.random() * len(text)), f"{words.residence(name, city)}.")
        (name, city), at = facts[0], round(DEPTHS[task] * len(text))
        before, after = words.OPENING + "".join(text[:at]), "".join(text[at:])
        fact, question = words.residence(name, city), f"\nWhere is{words.asked(name)}"
        prompt = f"{before}{fact}.{after}{question}"
        return Sample(
            task=task,
            split=split,
            index=index,
            prompt=prompt,
            answers=(city,),
            # what an oracle keeps: the opening, the fact, the question
            relevant=((0, 16), (len(before), len(before) + len(fact)), (len(prompt) - len(question), len(prompt))),
        )
