"""`namm runs`: what runs there are, and how they compare."""

from __future__ import annotations

import click
from rich.console import Console

from orchestrator.commands import as_json, print_json
from orchestrator.report import runs
from orchestrator.storage.run_folder import RUNS


@click.command(short_help="list the runs of this folder and compare them")
@as_json
def command(plain: bool) -> None:
    """Lists the runs of this folder: which are running, how far they have come, and how good their memories are."""
    found = runs.read_all(RUNS)
    if plain:
        print_json([runs.plain(run, RUNS / run.name) for run in found])
    elif found:
        Console().print(runs.table(found))
    else:
        print("no runs in this folder yet: make evolve")
