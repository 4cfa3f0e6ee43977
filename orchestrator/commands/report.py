"""`namm report`: the table of a finished run or evaluation. Reads files, starts nothing, computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from orchestrator.evaluation import curve_tables
from orchestrator.report import tables
from orchestrator.storage import run_folder


@click.command(short_help="print a run's table")
@click.argument("run")
@click.option("--markdown", is_flag=True, help="as Markdown")
def command(run: str, markdown: bool) -> None:
    """Prints the table of a finished RUN: an evolution or an evaluation, by name or folder."""
    points = None
    if (folder := _evaluation(run)) is not None:
        points = json.loads((folder / "curve.json").read_text("utf-8"))
    result = _result(folder or run_folder.find(run))
    if markdown:
        print(tables.markdown(result) if points is None else curve_tables.markdown(result, points))
    else:
        Console().print(tables.table(result) if points is None else curve_tables.table(result, points))


def _evaluation(name: str) -> Path | None:
    """The folder of a finished evaluation of that name, if there is one."""
    folder = run_folder.find_evaluation(name)
    return folder if folder is not None and (folder / "curve.json").is_file() else None


def _result(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "result.json").read_text("utf-8"))
    except OSError:
        raise ValueError(f"{folder} has no result yet; finish it: namm evolve --resume {folder.name}") from None
