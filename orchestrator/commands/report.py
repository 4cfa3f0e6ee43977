"""`namm report`: the table of a finished run or evaluation. Reads files, starts nothing, computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from orchestrator.commands import as_json, print_json
from orchestrator.evaluation import curve_tables
from orchestrator.messages import first_line
from orchestrator.report import tables
from orchestrator.report.verdict import verdict
from orchestrator.storage import run_folder


@click.command(short_help="print a run's table")
@click.argument("run")
@click.option("--markdown", is_flag=True, help="as Markdown")
@as_json
def command(run: str, markdown: bool, plain: bool) -> None:
    """Prints the table of a finished RUN: an evolution or an evaluation, by name or folder.

    With --json, all that was measured: `result`, which result.json holds; of an evolution its `verdict` in words, of an
    evaluation the `points` of its curve.
    """
    if markdown and plain:
        raise ValueError("--markdown or --json, not both")
    folder = _evaluation(run)
    try:
        print_one = _print_json if plain else _print_markdown if markdown else _print
        print_one(_result(folder or run_folder.find(run)), _points(folder))
    except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError, json.JSONDecodeError) as error:
        file = (folder or run_folder.find(run)) / "result.json"
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {first_line(error)}): bring it back") from None


def _print(result: dict[str, Any], points: Any) -> None:
    if points is None:
        Console(highlight=False).print(verdict(result), style="bold", soft_wrap=True)
    Console().print(tables.table(result) if points is None else curve_tables.table(result, points))


def _print_markdown(result: dict[str, Any], points: Any) -> None:
    print(tables.markdown(result) if points is None else curve_tables.markdown(result, points))


def _print_json(result: dict[str, Any], points: Any) -> None:
    more = {"verdict": verdict(result)} if points is None else {"points": points}
    print_json({**more, "result": result})


def _points(evaluation: Path | None) -> Any:
    """The points of an evaluation's curve; None of an evolution."""
    return None if evaluation is None else json.loads((evaluation / "curve.json").read_text("utf-8"))


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
