"""`result.json` as tables: for a terminal of 80 columns, and as Markdown. Computes nothing but the order of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from orchestrator.report.cells import (
    DIFFERENCES,
    add_columns,
    brackets,
    emphasis,
    empty,
    markdown_rows,
    number,
    ordered,
    plus_minus,
    protocol,
    stacked,
)

HELDOUT_MARK = "†"
"""Stands behind the names of tasks that evolution never saw."""

Result = Mapping[str, Any]
"""What `result.json` holds (`orchestrator.report.summary`)."""


def table(result: Result) -> Table:
    """The result for a terminal of 80 columns or more: a table of the policies above one of scores by task.

    An interval is written as mean ± half its width. Held-out kinds are marked, the NAMM is bold.
    """
    names = ordered(result["policies"])
    return stacked((_policies_table(result, names), _tasks_table(result, names), Text(_caption(result), "dim")))


def markdown(result: Result) -> str:
    """The result as a Markdown table with all columns, intervals written as [low, high]."""
    tasks = tuple(result["base"])
    head = ["policy", "kept", "mean score", "minus full (95 %)", "namm minus it (95 %)"]
    rows = [head + [_task_name(result, task) for task in tasks]]
    for name in ordered(result["policies"]):
        entry = result["policies"][name]
        cells = [name, f"{entry['kept']:.3f}", f"{entry['mean']:.3f}"]
        cells += [brackets(name, entry, field) for field in DIFFERENCES]
        cells += [f"{entry['score'][task]:.3f}" for task in tasks]
        rows.append([f"**{cell}**" if name == "namm" and cell else cell for cell in cells])
    return "\n".join([*markdown_rows(rows), "", _caption(result).replace("\n", " "), "", *_by_task(result)])


def _by_task(result: Result) -> list[str]:
    """The NAMM by task, trained and held-out ones apart: raw score, the full cache's, their ratio, kept fraction."""
    entry = result["policies"].get("namm")
    if entry is None or "kept_tasks" not in entry:
        return []
    lines = ["| task | | score | full cache | normalised | kept |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    held_out = result.get("heldout_tasks", ())
    for task in sorted(result["base"], key=lambda task: task in held_out):
        kind = "held out" if task in held_out else "trained"
        base = result["base"][task]
        ratio = f"{entry['normalised_tasks'][task]:.3f}" if base else ""  # of nothing there is no share
        score, kept = (f"{entry[name][task]:.3f}" for name in ("score", "kept_tasks"))
        lines.append(f"| {task} | {kind} | {score} | {base:.3f} | {ratio} | {kept} |")
    return [*lines, ""]


def _policies_table(result: Result, names: list[str]) -> Table:
    groups = {"mean_trained": "trained\nkinds", "mean_heldout_kinds": f"held-out\nkinds{HELDOUT_MARK}"}
    groups = {field: head for field, head in groups.items() if field in result["policies"]["full"]}
    out = empty()
    out.add_column("policy", no_wrap=True)
    add_columns(out, "kept", "mean\nscore", "minus full\n(95 %)", "namm minus it\n(95 %)", *groups.values())
    for name in names:
        entry = result["policies"][name]
        differences = [plus_minus(name, entry, field) for field in DIFFERENCES]
        means = [number(entry[field]) for field in groups]
        out.add_row(name, f"{entry['kept']:.2f}", number(entry["mean"]), *differences, *means, style=emphasis(name))
    return out


def _tasks_table(result: Result, names: list[str]) -> Table:
    out = empty()
    out.add_column("score by task", overflow="fold")
    for name in names:
        out.add_column(name, justify="right", style=emphasis(name))
    for task in result["base"]:
        out.add_row(_task_name(result, task), *(number(result["policies"][name]["score"][task]) for name in names))
    return out


def _task_name(result: Result, task: str) -> str:
    return task + HELDOUT_MARK if task in result.get("heldout_tasks", ()) else task


def _caption(result: Result) -> str:
    samples = result["policies"]["full"]["samples"]
    text = f"{samples} held-out samples, differences paired; kept: share of the KV cache held after the prompt.\n"
    text += f"{protocol(result).capitalize()}."
    if set(result.get("heldout_tasks", ())) & set(result["base"]):
        text += f"\n{HELDOUT_MARK} a kind of task that evolution never saw."
    return text
