"""The fuzz test: `python -m tests.fuzz [--seconds 900] [--seed 0] [--kind NAME ...] [--only NUMBER]`.

Ends with one line: inputs by kind, refused, accepted and right, faults. Exit status 1 where there are faults, of which
each has a line before; `--kind NAME --only NUMBER` tries that one input again.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import tempfile
from pathlib import Path

from tests.fuzz import running

KINDS = ("jobs", "addresses", "journals", "results", "arrays", "data_files", "memory_folders", "gguf_heads", "calls")
"""Modules of this package, each with a class `Inputs`."""
SHOWN = 20
"""Faults of one kind that are printed."""


def main(arguments: list[str] | None = None) -> int:
    """Runs it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900.0, help="how long, over all kinds (900)")
    parser.add_argument("--inputs", type=int, help="of each kind, at most (as many as there is time for)")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs (0)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--only", type=int, help="number of the one input to be tried")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="namm-fuzz-") as folder:
        kinds: dict[str, running.Kind] = {}
        for name in options.kind or KINDS:
            try:
                made = importlib.import_module(f"tests.fuzz.{name}").Inputs
            except ModuleNotFoundError as error:
                print(f"fuzz: {name} is left out: the package {error.name} is not installed")
                continue
            place = Path(folder) / name
            place.mkdir()
            kinds[name] = made(place) if inspect.signature(made).parameters else made()
        tally = running.run(kinds, options.seconds, options.seed, options.only, options.inputs)
    for line in tally.faults[:SHOWN]:
        print(f"fuzz: FAULT {line}")
    print(tally.line)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
