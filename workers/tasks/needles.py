"""Needles: made-up facts that are put into real text, in several wordings, and the questions that ask for them.

Keys, values and the first wording are in RULER's manner (arXiv 2404.06654). Knows no text and no tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from workers.tasks.drawing import choose, draw

ADJECTIVES = (
    "amber ancient brave bright calm clever cold crimson curious dusty eager early faint fancy fierce frozen "
    "gentle giant golden grand green hidden hollow humble icy jolly keen late lively lonely lucky mellow merry "
    "misty modest noble pale plain polite proud quick quiet rapid rare royal rusty scarlet sharp shiny silent "
    "silver sleepy smooth solid steady stormy sturdy subtle swift tame tidy tiny vivid warm wild wise young"
).split()
NOUNS = (
    "anchor apple arrow badger barrel basket beacon beaver bison bottle bridge bucket candle canyon castle cedar "
    "cherry clover comet copper coral cotton cradle dagger desert donkey dragon eagle ember falcon feather ferry "
    "fiddle forest fossil garden glacier goblet hammer harbor harvest hedge helmet heron island jacket jungle "
    "kettle ladder lantern lemon lizard magnet maple marble meadow mirror monkey needle nutmeg oyster paddle "
    "pebble pepper pigeon pillow pirate planet pocket prairie puzzle rabbit ribbon river rocket saddle salmon "
    "shadow shovel spider sponge squirrel summit sunset temple thunder ticket tiger timber tunnel turtle valley "
    "velvet violin walnut whistle willow window winter"
).split()
MONTHS = "January February March April May June July August September October November December".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def digits(count: int) -> Callable[[random.Random], str]:
    """Draws numbers of `count` digits, none of them 0 at the front."""
    low = 10 ** (count - 1)
    return lambda rng: str(low + int(rng.random() * 9 * low))


def date(rng: random.Random) -> str:
    """A day of the twentieth century, such as 7 March 1921."""
    return f"{1 + int(rng.random() * 28)} {choose(rng, MONTHS)} {1900 + int(rng.random() * 100)}"


def price(rng: random.Random) -> str:
    """A number of thousands, such as 4,730."""
    return f"{1 + int(rng.random() * 99)},{int(rng.random() * 100):02d}0"


def time(rng: random.Random) -> str:
    """A minute of the day, such as 07:45."""
    return f"{int(rng.random() * 24):02d}:{int(rng.random() * 60):02d}"


@dataclass(frozen=True)
class Wording:
    """How a fact is stated and asked for; `{key}` and `{value}` stand for its parts."""

    fact: str
    """The sentence."""
    one: str
    """Question for a key's only value."""
    one_prefix: str
    """How that answer begins."""
    all: str
    """Question for several values, of a key or of several keys."""
    all_prefix: str
    """How that answer begins."""
    value: Callable[[random.Random], str]
    """Draws a value."""


WORDINGS = (
    Wording(
        "The special magic number for {key} is {value}.",
        "What is the special magic number for {key} mentioned in the provided text?",
        "The special magic number for {key} is",
        "What are all the special magic numbers for {key} mentioned in the provided text?",
        "The special magic numbers for {key} are",
        digits(7),
    ),
    Wording(
        "The price of {key} was set at {value} dollars.",
        "At how many dollars was the price of {key} set?",
        "The price of {key} was set at",
        "At how many dollars were the prices of {key} set? List every price.",
        "The prices of {key} were set at",
        price,
    ),
    Wording(
        "The locker of {key} opens with the combination {value}.",
        "With which combination does the locker of {key} open?",
        "The locker of {key} opens with the combination",
        "Which combinations are given for the locker of {key}? List every combination.",
        "The locker of {key} opens with the combinations",
        digits(5),
    ),
    Wording(
        "In the register, {key} has the entry number {value}.",
        "Which entry number does {key} have in the register?",
        "In the register, {key} has the entry number",
        "Which entry numbers does the register give for {key}? List every number.",
        "In the register, {key} has the entry numbers",
        digits(6),
    ),
    Wording(
        "The train for {key} leaves the station at {value}.",
        "At what time does the train for {key} leave the station?",
        "The train for {key} leaves the station at",
        "At what times do the trains for {key} leave the station? List every time.",
        "The trains for {key} leave the station at",
        time,
    ),
    Wording(
        "The contract with {key} was signed on {value}.",
        "On which day was the contract with {key} signed?",
        "The contract with {key} was signed on",
        "On which days were contracts with {key} signed? List every day.",
        "The contracts with {key} were signed on",
        date,
    ),
)
"""The first three are for training, the fourth for validation, the last two for held-out samples, where they are
kept apart."""
APART = {"train": WORDINGS[:3], "validation": WORDINGS[3:4], "heldout": WORDINGS[4:]}


def keys(rng: random.Random, count: int) -> list[str]:
    """Different names such as `silent-harbor`; no two share a word, which a reader could mix up."""
    pairs = zip(draw(rng, ADJECTIVES, count), draw(rng, NOUNS, count), strict=True)
    return [f"{adjective}-{noun}" for adjective, noun in pairs]


def values(rng: random.Random, wording: Wording, count: int) -> list[str]:
    """Different values of a wording."""
    found: list[str] = []
    while len(found) < count:
        if (value := wording.value(rng)) not in found:
            found.append(value)
    return found


def names(rng: random.Random, count: int, letters: int = 5) -> list[str]:
    """Different made-up words of capital letters, such as RULER's variables have."""
    found: list[str] = []
    while len(found) < count:
        word = "".join(choose(rng, LETTERS) for _ in range(letters)).upper()
        if word not in found:
            found.append(word)
    return found


def spoken(rows: list[str]) -> str:
    """`a, b and c`."""
    return rows[0] if len(rows) == 1 else f"{', '.join(rows[:-1])} and {rows[-1]}"
