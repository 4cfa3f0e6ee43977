"""Multiple choice by letters, as video benchmarks ask and score it. Knows no benchmark."""

from __future__ import annotations

from workers.tasks.fields import answers, shown

LETTERS = "ABCDEFGHIJ"


def lettered(candidates: list[str], form: str) -> str:
    """The candidates, one on each line. form: how a letter and a candidate are written, such as "{letter}. {text}"."""
    return "\n".join(form.format(letter=LETTERS[i], text=text) for i, text in enumerate(candidates))


def checked(candidates: object, where: str) -> list[str]:
    """The candidates as texts; numbers are taken as they are written.

    Raises ValueError, one line, for fewer than two or more than there are letters, and for what is no text.
    """
    if not isinstance(candidates, list) or not 2 <= len(candidates) <= len(LETTERS):
        raise ValueError(f"{where}: expected 2 to {len(LETTERS)} candidates, found {shown(candidates)}")
    if (wanted := answers().wrong(candidates)) is not None:
        raise ValueError(f"{where}: expected the candidates to be {wanted}, found {shown(candidates)}")
    return [str(candidate) for candidate in candidates]
