"""Clips drawn by code: coloured shapes that come and go, then one question. Knows no model and no tokenizer.

A clip is one day from dawn to night. Now and then a shape crosses the picture for a few frames; all other frames are
empty, or have grey specks in them. The answer to a question is in a few of the frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workers.tasks.drawing import DrawnTasks, check_ranges, choose, draw
from workers.tasks.video import MARK, VideoSample

SIDE = 32
"""Pixels of a frame's side."""
EXTENT = 12
"""Pixels of a shape's side."""
COLOURS = {
    "red": (225, 35, 35),
    "green": (35, 190, 50),
    "blue": (45, 75, 240),
    "yellow": (240, 225, 40),
    "white": (250, 250, 250),
    "pink": (245, 110, 200),
    "orange": (250, 140, 20),
    "cyan": (40, 220, 230),
}
TIMES = {"dawn": (70, 45, 60), "day": (110, 125, 140), "dusk": (100, 65, 25), "night": (8, 8, 30)}
"""The parts of a clip in their order, and the colour of the background in each."""
NUMBERS = ("one", "two", "three", "four")
OPENING = "Clip:"
NOISE = 24
"""Width of the band of noise on the background, in levels from 0 to 255."""


def _masks() -> dict[str, np.ndarray]:
    """(EXTENT, EXTENT) bool for each shape."""
    y, x = np.mgrid[:EXTENT, :EXTENT] - (EXTENT - 1) / 2
    radius, half = np.hypot(x, y), EXTENT / 2
    return {
        "circle": radius <= half,
        "square": np.ones((EXTENT, EXTENT), bool),
        "triangle": np.abs(x) <= (y + half) / 2,
        "cross": (np.abs(x) <= 2) | (np.abs(y) <= 2),
        "ring": (radius <= half) & (radius >= half - 2.5),
        "bar": np.abs(y) <= 2,
    }


SHAPES = _masks()


@dataclass(frozen=True)
class Event:
    """A shape that crosses the picture, and its colour."""

    shape: str
    colour: str


@dataclass(frozen=True)
class Question:
    """A question in pieces, its answer, all answers that it might have, and the events that answer it."""

    pieces: tuple[str, ...]
    answer: str
    choices: tuple[str, ...]
    events: tuple[int, ...]


@dataclass(frozen=True)
class ClipsConfig:
    """The clips' configuration."""

    frames: int = 96
    """Frames of a clip."""
    kinds: tuple[str, ...] = ("colour", "shape", "when", "latest", "count")
    """Kinds of question in this set; `KINDS` names them all."""
    seed: int = 0
    """Seed of all samples; another seed gives other samples."""
    events: int = 6
    """How many shapes come and go in a clip; 1 to 8."""
    stay: int = 2
    """Frames for which each one stays; 1 to 16."""
    specks: float = 0.5
    """Share of frames with grey specks in them."""


@dataclass(frozen=True)
class Clip:
    """A clip's events in their order, each event's frames, and the time of day of each frame."""

    events: tuple[Event, ...]
    spans: tuple[range, ...]
    times: tuple[str, ...]

    def time(self, event: int) -> str:
        """The time of day at which an event begins."""
        return self.times[self.spans[event].start]


def once(rng: random.Random, count: int) -> list[Event]:
    """`count` different shapes in different colours; fewer if there are not as many shapes."""
    count = min(count, len(SHAPES))
    pairs = zip(draw(rng, tuple(SHAPES), count), draw(rng, tuple(COLOURS), count), strict=True)
    return [Event(*pair) for pair in pairs]


def again(rng: random.Random, count: int) -> list[Event]:
    """`count` events of a few shapes that come again and again, each time in another colour."""
    shapes = draw(rng, tuple(SHAPES), max(2, count // 3) if count > 1 else 1)
    left = {shape: draw(rng, tuple(COLOURS), len(NUMBERS)) for shape in shapes}
    order = list(shapes)
    while len(order) < count:
        order.append(choose(rng, tuple(shape for shape in shapes if order.count(shape) < len(NUMBERS))))
    return [Event(shape, left[shape].pop()) for shape in draw(rng, tuple(order), count)]


def colour(clip: Clip) -> list[Question]:
    """Which: "What colour was the circle?"."""
    return [
        Question(("\nWhat", " colour", " was", " the", f" {event.shape}?"), event.colour, tuple(COLOURS), (i,))
        for i, event in enumerate(clip.events)
    ]


def shape(clip: Clip) -> list[Question]:
    """Which, the other way round: "Which shape was red?"."""
    return [
        Question(("\nWhich", " shape", " was", f" {event.colour}?"), event.shape, tuple(SHAPES), (i,))
        for i, event in enumerate(clip.events)
    ]


def when(clip: Clip) -> list[Question]:
    """When: "When was the circle?", in which part of the clip."""
    return [
        Question(("\nWhen", " was", " the", f" {event.shape}?"), clip.time(i), tuple(TIMES), (i,))
        for i, event in enumerate(clip.events)
    ]


def latest(clip: Clip) -> list[Question]:
    """In what order: "What colour was the last circle?" among several."""
    last = {event.shape: i for i, event in enumerate(clip.events)}
    return [
        Question(
            ("\nWhat", " colour", " was", " the", " last", f" {name}?"), clip.events[i].colour, tuple(COLOURS), (i,)
        )
        for name, i in last.items()
    ]


def first(clip: Clip) -> list[Question]:
    """In what order: "What colour was the first circle?" among several."""
    earliest = {event.shape: i for i, event in reversed(list(enumerate(clip.events)))}
    return [
        Question(
            ("\nWhat", " colour", " was", " the", " first", f" {name}?"), clip.events[i].colour, tuple(COLOURS), (i,)
        )
        for name, i in earliest.items()
    ]


def count(clip: Clip) -> list[Question]:
    """How many: "How many were of the shape circle?"."""
    found: dict[str, list[int]] = {}
    for i, event in enumerate(clip.events):
        found.setdefault(event.shape, []).append(i)
    return [
        Question(("\nHow", " many", " were", " a", f" {name}?"), NUMBERS[len(events) - 1], NUMBERS, tuple(events))
        for name, events in found.items()
    ]


KINDS: dict[str, tuple[Callable[[random.Random, int], list[Event]], Callable[[Clip], list[Question]]]] = {
    "colour": (once, colour),
    "shape": (once, shape),
    "when": (once, when),
    "latest": (again, latest),
    "first": (again, first),
    "count": (again, count),
}
"""What a clip of each kind shows, and what may be asked of it."""


def compose(rng: random.Random, events: list[Event], frames: int, stay: int) -> Clip:
    """A clip with the events in their order, at random times that do not overlap, each for `stay` frames.

    Raises ValueError if they do not fit.
    """
    free = frames - stay * len(events)
    if free < 0:
        raise ValueError(f"{frames} frames cannot hold {len(events)} events of {stay}: raise frames or lower events")
    gaps = sorted(int(rng.random() * (free + 1)) for _ in events)
    spans = tuple(range(gap + stay * i, gap + stay * (i + 1)) for i, gap in enumerate(gaps))
    names = tuple(TIMES)
    return Clip(tuple(events), spans, tuple(names[len(names) * at // frames] for at in range(frames)))


def paint(rng: random.Random, clip: Clip, specks: float) -> tuple[np.ndarray, np.ndarray]:
    """The clip's frames (frames, SIDE, SIDE, 3) uint8, and which pixels (frames, SIDE, SIDE) are an event's."""
    # A bit generator's raw stream is the same in every version of numpy; its distributions' are not.
    seed, size = int(rng.random() * 2**53), (len(clip.times), SIDE, SIDE)
    words = np.random.PCG64(seed).random_raw(-(-int(np.prod(size)) // 8)).astype("<u8")
    noise = words.view(np.uint8)[: int(np.prod(size))].reshape(size).astype(np.int16) * NOISE // 256
    tint = np.array([TIMES[name] for name in clip.times], np.int16)
    frames = np.minimum(tint[:, None, None] + noise[..., None], 255).astype(np.uint8)
    covered = np.zeros(size, bool)
    for frame in frames:
        if rng.random() < specks:
            for _ in range(3):
                left, top = (int(rng.random() * (SIDE - 2)) for _ in range(2))
                frame[top : top + 2, left : left + 2] = 150
    for event, span in zip(clip.events, clip.spans, strict=True):
        x, y = (rng.random() * (SIDE - EXTENT) for _ in range(2))
        dx, dy = (rng.random() * 8 - 4 for _ in range(2))
        for at in span:
            place = at, slice(round(y), round(y) + EXTENT), slice(round(x), round(x) + EXTENT)
            covered[place] = SHAPES[event.shape]
            frames[place][SHAPES[event.shape]] = COLOURS[event.colour]
            x, y = (min(max(v, 0.0), float(SIDE - EXTENT)) for v in (x + dx, y + dy))
    return frames, covered


class ClipsTasks(DrawnTasks[VideoSample]):
    """The clips of one configuration (a `TaskSet`)."""

    known = KINDS
    noun = "kind of clip"

    def __init__(self, config: ClipsConfig) -> None:
        """Raises ValueError for an unknown kind or a number out of its range."""
        super().__init__(config.kinds, config.seed)
        frames = config.events * config.stay, 4096
        check_ranges(config, {"events": (1, 8), "stay": (1, 16), "specks": (0, 1), "frames": frames})
        self.config = config

    def content(self, sample: VideoSample) -> bytes:
        """The frames and the question."""
        return sample.frames.tobytes() + sample.prompt.encode()

    def draw(self, rng: random.Random, task: str, split: str, index: int) -> VideoSample:
        """A clip with one question about it. Raises ValueError if the events do not fit into the frames."""
        events, ask = KINDS[task]
        clip = compose(rng, events(rng, self.config.events), self.config.frames, self.config.stay)
        question = choose(rng, ask(clip))
        asked = "".join(question.pieces)
        prompt = OPENING + MARK + asked
        return VideoSample(
            task=task,
            split=split,
            index=index,
            prompt=prompt,
            answers=(question.answer,),
            relevant=((0, len(OPENING)), (len(prompt) - len(asked), len(prompt))),
            frames=paint(rng, clip, self.config.specks)[0],
            evidence=tuple(sorted(at for i in question.events for at in clip.spans[i])),
            choices=question.choices,
        )


def vocabulary() -> tuple[str, ...]:
    """All pieces of questions and answers, each once, in a fixed order."""
    keys = (*SHAPES, *COLOURS)
    pieces = [OPENING, "\nWhat", "\nWhich", "\nWhen", "\nHow", " colour", " shape", " was", " were", " the", " a"]
    pieces += [" many", " last", " first", *(f" {key}?" for key in keys)]
    pieces += [f" {word}" for word in (*keys, *TIMES, *NUMBERS)]
    return tuple(dict.fromkeys(pieces))
