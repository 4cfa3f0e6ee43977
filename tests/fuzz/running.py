"""Runs inputs of every kind in turn, each within its time, and counts what became of them.

An input is refused (a ValueError in one line), accepted and right, or a fault: any other error, a message of several
lines, a piece of a secret in it, a wrong answer, or no answer in ten seconds. Knows no kind.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

LONGEST = 10.0
"""Seconds that an input may take, those not counted in which other programs had all processors."""


class Kind(Protocol):
    """Inputs of one kind."""

    def one(self, rng: random.Random) -> bool:
        """Draws an input and tries it: True if it was accepted and right, False if `refused` says that it was refused.

        Raises whatever it meets otherwise.
        """
        ...


class Hang(BaseException):
    """An input took too long; not an Exception, so that nobody takes it for an error of their own."""


def refused(error: ValueError, shown: Any = None) -> bool:
    """False, the answer of `Kind.one`, after a look at the message. shown: the text that a person sees, if another."""
    text = str(error if shown is None else shown)
    assert type(error) is ValueError or isinstance(error, ValueError)
    assert text.strip(), f"an empty {type(error).__name__}"
    assert len(text.splitlines()) == 1, f"a message of several lines: {text[:300]!r}"
    return False


@dataclass
class Tally:
    """What became of the inputs, by kind."""

    refused: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """One line for each: the kind, the input's number, and what happened."""

    @property
    def line(self) -> str:
        """The last line of a run."""
        kinds = sorted({*self.refused, *self.right})
        by_kind = ", ".join(f"{kind} {self.refused[kind] + self.right[kind]}" for kind in kinds)
        return (
            f"fuzz: {self.refused.total() + self.right.total() + len(self.faults)} inputs ({by_kind}), "
            f"{self.refused.total()} refused, {self.right.total()} accepted and right, {len(self.faults)} faults"
        )


def run(
    kinds: Mapping[str, Kind], seconds: float, seed: int, only: int | None = None, inputs: int | None = None
) -> Tally:
    """Tries inputs until the time is over, each kind for an equal share of it.

    inputs: of each kind, at most, so that what is tried does not depend on how fast the machine is; only: the number
    of the one input of each kind to be tried.
    """
    tally, spent = Tally(), dict.fromkeys(kinds, 0.0)
    counts: Counter[str] = Counter()
    while sum(spent.values()) < seconds:
        left = [kind for kind in kinds if inputs is None or counts[kind] < inputs]
        if not left:
            break
        name = min(left, key=lambda kind: spent[kind])  # noqa: B023
        number = counts[name] if only is None else only
        counts[name] += 1
        start = time.monotonic()
        try:
            with _limit():
                right = kinds[name].one(random.Random(f"{seed} {name} {number}"))
            (tally.right if right else tally.refused)[name] += 1
        except (Exception, Hang) as error:
            tally.faults.append(f"{name} {number}: {_said(error)}")
        spent[name] += time.monotonic() - start
        if only is not None and len(counts) == len(kinds):
            break
    return tally


@contextmanager
def _limit() -> Iterator[None]:
    def over(*_: Any) -> None:
        left = LONGEST - (time.monotonic() - start) + (_waited() - waited)
        if left <= 0:
            raise Hang(f"no answer in {LONGEST:.0f} s")
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.1))

    start, waited = time.monotonic(), _waited()
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _waited() -> float:
    """Seconds that this thread could have run and did not, since it began; 0 where the system does not count them."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text("utf-8").split()[1]) / 1e9
    except OSError:
        return 0.0


def _said(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = " < ".join(
        f"{os.path.basename(frame.filename)}:{frame.lineno}"
        for frame in [*reversed(frames[-2:]), *(f for f in reversed(frames) if "fuzz" in f.filename)]
    )
    return f"{type(error).__name__}: {str(error)[:400]!r} at {place}"
