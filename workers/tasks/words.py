"""The words of the recall tasks, each one token of the small model. Knows no tasks and no model.

A piece is the exact text of one token, with the space or line break in front of it; a text is its pieces joined.
"""

from __future__ import annotations

OPENING = "Text:"
STOP = "."
NAMES = tuple("Anna Ben Clara David Emma Felix Grace Henry Iris Jack Karin Leo Maria Noah Olga Peter".split())
CITIES = tuple("Athens Berlin Cairo Delhi Geneva Lima London Madrid Oslo Paris Rome Tokyo".split())
COLOURS = tuple("red blue green white black yellow brown pink".split())
TOPICS = {
    "music": tuple("piano singer melody concert drummer choir".split()),
    "sport": tuple("goal runner stadium match referee trophy".split()),
    "food": tuple("bread soup cheese cook recipe dinner".split()),
    "travel": tuple("ticket luggage airport hotel journey passport".split()),
    "science": tuple("atom telescope theory laboratory microscope experiment".split()),
    "health": tuple("doctor nurse medicine fever hospital vaccine".split()),
}
PASSKEY = tuple(tuple(f"{letter}{digit}" for digit in range(10)) for letter in "KLM")

NOUNS = tuple(
    "farmer river teacher garden child village neighbour forest baker market soldier bridge painter valley "
    "fisherman harbour gardener meadow carpenter tower shepherd hill sailor island tailor castle miller "
    "field hunter lake".split()
)
VERBS = tuple(
    "waited walked slept laughed worked rested stood smiled arrived returned listened talked stayed turned "
    "paused wandered".split()
)
ADJECTIVES = tuple(
    "old young quiet happy small tall kind tired brave gentle clever busy proud lonely patient friendly".split()
)
ADVERBS = tuple("quietly slowly again often today alone early calmly".split())
PREPOSITIONS = tuple("near behind beyond beside above around".split())


def spaced(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words as the pieces that they are inside a sentence."""
    return tuple(" " + word for word in words)


def residence(name: str, city: str) -> str:
    """The fact "this person is in this city", one piece."""
    return f" {name}:{city}"


def paint(city: str, colour: str) -> str:
    """The fact "this city has this colour", one piece."""
    return f" {city}:{colour}"


def asked(word: str) -> str:
    """A word that ends a question, one piece."""
    return f" {word}?"


def vocabulary() -> tuple[str, ...]:
    """All pieces, each once, in a fixed order."""
    topics = tuple(TOPICS)
    plain = NAMES + CITIES + COLOURS + topics + sum(TOPICS.values(), ())
    plain += sum(PASSKEY, ()) + NOUNS + VERBS + ADJECTIVES + ADVERBS + PREPOSITIONS
    plain += tuple("The the and is of in has passkey colour city of topic".split())
    pieces = [OPENING, STOP, " ", "\n", "\nWhere", "\nWho", "\nWhat"]
    pieces += spaced(plain)
    pieces += [asked(word) for word in NAMES + CITIES + ("passkey", "topic")]
    pieces += [residence(name, city) for name in NAMES for city in CITIES]
    pieces += [paint(city, colour) for city in CITIES for colour in COLOURS]
    return tuple(dict.fromkeys(pieces))
