"""What tables of results have in common: their cells as text, the order of their rows, and the empty table.

Knows single entries of `result.json` and points of `curve.json`, and of a whole result its protocol alone; knows no
files and no pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

LEADING = ("full", "namm", "oracle")
"""Policies whose rows come first, in this order."""
DIFFERENCES = {"difference": "full", "namm_difference": "namm"}
"""Fields that hold a paired difference, with the policy that it is measured against."""

PROTOCOLS = {
    "streaming": "protocol streaming: memories forget at every update, while they read",
    "context": "protocol context: memories forget once, when the context has been read and before the question is",
}
"""What the values of `evaluation.protocol` mean."""


def protocol(result: Mapping[str, Any]) -> str:
    """By which protocol a whole result was measured, in words; results of the time before there were two stream."""
    return PROTOCOLS[result.get("protocol", "streaming")]


def empty() -> Table:
    """A table without rows or columns, narrow enough for a terminal of 80 columns."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def add_columns(table: Table, *heads: str) -> None:
    """Adds right-aligned columns that are never wrapped."""
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)


def ordered(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Labels of `result.json`'s policies: full cache, NAMM, oracle, then the others by falling mean score."""
    first = [name for name in LEADING if name in policies]
    others = [name for name in policies if name not in LEADING]
    return [*first, *sorted(others, key=lambda name: (-policies[name]["mean"], name))]


def emphasis(policy: str) -> str:
    """Style of a policy's row: the NAMM's is bold."""
    return "bold" if policy == "namm" else ""


def number(value: float | None) -> str:
    """Three decimals; nothing for a value that does not exist."""
    return "" if value is None else f"{value:.3f}"


def plus_minus(policy: str, entry: Mapping[str, Any], field: str) -> Text:
    """A difference as mean ± half the width of its interval; green where the interval lies above 0, red where below.

    Empty for the policy that the difference is measured against, and where there is none.
    """
    if policy == DIFFERENCES[field] or field not in entry:
        return Text("")
    low, high = entry[f"{field}_interval"]
    if low is None:
        return Text(f"{entry[field]:+.3f}")
    style = "green" if low > 0 else "red" if high < 0 else ""
    return Text(f"{entry[field]:+.3f} ±{(high - low) / 2:.3f}", style=style)


def brackets(policy: str, entry: Mapping[str, Any], field: str) -> str:
    """The same as mean [low, high]."""
    if policy == DIFFERENCES[field] or field not in entry:
        return ""
    low, high = entry[f"{field}_interval"]
    return f"{entry[field]:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def markdown_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first row is its head, and all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]


def stacked(parts: Iterable[Table | Text]) -> Table:
    """Tables and texts below each other, a blank line behind each."""
    whole = Table.grid()
    for part in parts:
        whole.add_row(part)
        whole.add_row("")
    return whole
