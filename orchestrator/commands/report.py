"""`namm report`: the table of a finished run or evaluation. Reads files, starts nothing, computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from orchestrator.evaluation import curve_tables
from orchestrator.messages import first_line
from orchestrator.report import tables
from orchestrator.report.verdict import verdict
from orchestrator.storage import run_folder


@click.command(short_help="print a run's table")
@click.argument("run")
@click.option("--markdown", is_flag=True, help="as Markdown")
def command(run: str, markdown: bool) -> None:
    """Prints the table of a finished RUN: an evolution or an evaluation, by name or folder."""
    folder = _evaluation(run)
    try:
        _print(folder, _result(folder or run_folder.find(run)), markdown)
    except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError, json.JSONDecodeError) as error:
        file = (folder or run_folder.find(run)) / "result.json"
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {first_line(error)}): bring it back") from None


def _print(evaluation: Path | None, result: dict[str, Any], markdown: bool) -> None:
    points = None if evaluation is None else json.loads((evaluation / "curve.json").read_text("utf-8"))
    if markdown:
        print(tables.markdown(result) if points is None else curve_tables.markdown(result, points))
    else:
        if points is None:
            Console(highlight=False).print(verdict(result), style="bold", soft_wrap=True)
        Console().print(tables.table(result) if points is None else curve_tables.table(result, points))


def _evaluation(name: str) -> Path | None:
    """The folder of a finished evaluation of that name, if there is one."""
    folder = run_folder.find_evaluation(name)
    return folder if folder is not None and (folder / "curve.json").is_file() else None


def _result(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "result.json").read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder}/result.json is damaged (byte {error.start} is not UTF-8)") from None
    except OSError:
        raise ValueError(f"{folder} has no result yet; finish it: namm evolve --resume {folder.name}") from None
