"""What one NAMM did on several targets, as a table for a terminal and as Markdown. Knows no files or pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from orchestrator.evaluation import curve_tables
from orchestrator.report.cells import DIFFERENCES, add_columns, brackets, emphasis, empty, markdown_rows, ordered

Evaluated = tuple[dict[str, Any], list[dict[str, Any]]]
"""What `result.json` and `curve.json` of a target hold."""


def table(found: Mapping[str, Evaluated]) -> Table:
    """Every policy on every target, at the size that the NAMM chose there."""
    out = empty()
    for head in ("target", "policy"):
        out.add_column(head, no_wrap=True)
    add_columns(out, "kept", "score", "minus full\n(95 %)", "namm minus it\n(95 %)")
    for target, (result, _) in found.items():
        for policy in ordered(result["policies"]):
            cells = curve_tables.own_size(policy, result["policies"][policy])
            out.add_row(target, policy, *cells, style=emphasis(policy))
            target = ""  # named in its first row only
        out.add_section()
    return out


def markdown(found: Mapping[str, Evaluated]) -> str:
    """The same as Markdown, with every other size."""
    rows = [["target", "policy", "kept", "score", "minus full (95 %)", "namm minus it (95 %)"]]
    for target, (result, points) in found.items():
        at_own = {p["policy"]: p for p in points if p["level"] in (None, result["own_kept"])}
        for policy in ordered(result["policies"]):
            point = at_own[policy]
            both = [brackets(policy, point, field) for field in DIFFERENCES]
            rows.append([target, f"`{policy}`", f"{point['kept']:.3f}", f"{point['score']:.3f}", *both])
    text = ["## At the size that the NAMM chooses", "", *markdown_rows(rows), ""]
    for target, (result, points) in found.items():
        if any(point["level"] not in (None, result["own_kept"]) for point in points):
            text += [f"# {target}: {Path(result['model']).name}", "", curve_tables.markdown(result, points)]
    return "\n".join(text)
