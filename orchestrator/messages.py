"""Errors as one line that a person can read, without credentials. Knows nothing of what failed."""

from __future__ import annotations

from workers.masking import masked_text

LONGEST = 300
"""Characters of a foreign error's text that are worth a person's time."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class where it has none."""
    return masked_text(str(error).partition("\n")[0])[:LONGEST] or type(error).__name__


def root_cause(error: BaseException) -> str:
    """The innermost reason of a chain of errors, in one line: `Connection refused`, not who passed it on."""
    while True:
        held = [part for part in error.args if isinstance(part, BaseException)]
        inner = error.__cause__ or error.__context__ or (held[0] if held else None)
        if inner is None:
            break
        error = inner
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
