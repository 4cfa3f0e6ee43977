"""The points of a curve as tables: for a terminal of 80 columns, and as Markdown. Knows no files or pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from orchestrator.evaluation.settings import sentence
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

Result = Mapping[str, Any]
"""What an evaluation's `result.json` holds."""
Point = Mapping[str, Any]
"""One entry of `curve.json` (`orchestrator.evaluation.points`)."""

GROUPS = {"trained": "trained kinds", "heldout": "unseen kinds"}
"""Kinds of task that evolution trained on, and those that it never saw, as tables call them."""
RATES = ("prefill", "decode")
"""What was timed, in tokens a second."""


def table(result: Result, points: Sequence[Point]) -> Table:
    """Scores by policy and size; differences, then speed and memory, at the NAMM's own size."""
    parts = (
        _scores(result, points),
        _caption(result, points),
        _differences(result),
        _kinds_apart(result),
        _costs(result, points),
    )
    return stacked(part for part in parts if part is not None)


def markdown(result: Result, points: Sequence[Point]) -> str:
    """The same as Markdown, with every point's interval, speed and size."""
    levels = _levels(points)
    rows = [["policy", *(_head(level, result) for level in levels)]]
    for name in _by_score(points):
        cells = [_at(points, name, level) for level in levels]
        rows.append([f"`{name}`", *("" if p is None else f"{p['score']:.3f}" for p in cells)])
    text = ["## Score by kept fraction of the cache", "", *markdown_rows(rows)]
    for line in str(_caption(result, points)).splitlines():  # a paragraph each; a line that begins with * is no list
        text += ["", re.sub(r"^\*", r"\\*", line)]
    text.append("")
    text += ["## All points", "", *markdown_rows([*_all_points(points)]), ""]
    if _apart(points):
        text += ["## Trained and unseen kinds apart", "", *markdown_rows([*_all_kinds(points)]), ""]
    return "\n".join(text)


def own_size(policy: str, entry: Mapping[str, Any]) -> list[str | Text]:
    """Kept fraction, score, and both differences of a policy in `result.json`."""
    return [f"{entry['kept']:.2f}", f"{entry['mean']:.3f}", *(plus_minus(policy, entry, f) for f in DIFFERENCES)]


def _all_points(points: Sequence[Point]) -> Iterator[list[str]]:
    """Rows of a Markdown table, its head first."""
    timed = any("peak_cache_bytes" in point for point in points)
    heads = [*(f"{what} tokens/s (x full)" for what in RATES), "peak cache MB (x full)"] if timed else []
    yield ["policy", "budget", "kept", "score", "minus full (95 %)", "namm minus it (95 %)", *heads]
    for point in points:
        budget = "" if point["budget"] is None else f"{point['budget']:g}"
        row = [f"`{point['policy']}`", budget, f"{point['kept']:.3f}", f"{point['score']:.3f}"]
        row += [brackets(point["policy"], point, field) for field in DIFFERENCES]
        if timed:
            row += [f"{point[f'{what}_tokens_per_second']:,.0f} ({point[f'{what}_ratio']:.2f})" for what in RATES]
            row.append(f"{point['peak_cache_bytes'] / 1e6:.2f} ({point['peak_cache_ratio']:.2f})")
        yield row


def _all_kinds(points: Sequence[Point]) -> Iterator[list[str]]:
    """Rows of a Markdown table of trained and unseen kinds, its head first."""
    heads = [f"{name}: {what}" for name in GROUPS.values() for what in ("score", "minus full", "namm minus it")]
    yield ["policy", "budget", *heads]
    for point in points:
        row = [f"`{point['policy']}`", "" if point["budget"] is None else f"{point['budget']:g}"]
        for group in GROUPS:
            part = point["groups"][group]
            row += [number(part["score"]), *(brackets(point["policy"], part, field) for field in DIFFERENCES)]
        yield row


def _apart(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there are samples of both groups."""
    return all(entry.get("groups", {}).keys() == GROUPS.keys() for entry in entries)


def _scores(result: Result, points: Sequence[Point]) -> Table:
    levels = _levels(points)
    out = empty()
    out.add_column("score at kept\nfraction of", overflow="fold")
    add_columns(out, *(_head(level, result) for level in levels))
    best = {level: max(point["score"] for point in points if point["level"] == level) for level in levels}
    for name in _by_score(points):
        cells = []
        for level in levels:
            point = _at(points, name, level)
            text = "" if point is None else f"{point['score']:.3f}"
            cells.append(Text(text, "underline" if point is not None and point["score"] == best[level] else ""))
        out.add_row(name, *cells, style=emphasis(name))
    return out


def _caption(result: Result, points: Sequence[Point]) -> Text:
    single = [p for p in points if p["level"] is None]
    text = "   ".join(f"{p['policy']} {p['score']:.3f} (kept {p['kept']:.2f})" for p in single)
    off = max((abs(p["kept"] - p["level"]) for p in points if p["level"] is not None), default=0.0)
    own = "the NAMM as it is" if result.get("reference_size") is None else "the tables below"
    text += f"\n* {own}. {single[0]['samples']} held-out samples, the same ones everywhere; "
    text += f"what was kept is within {off:.3f} of the heads."
    if any("peak_cache_bytes" in point for point in points):
        text += (
            " Speed and size: one prompt at a time on one worker, policies in turn, median of "
            f"{result['timing']['rounds']} rounds, {result['timing']['decoded']} tokens decoded."
        )
    text += f"\n{protocol(result).capitalize()}."
    if chosen := sentence({p["policy"]: p["settings"] for p in points if "settings" in p}):
        text += f"\n{chosen}"
    return Text(text, "dim")


def _differences(result: Result) -> Table:
    out = empty()
    out.add_column(_where(result), overflow="fold")
    add_columns(out, "kept", "score", "minus full\n(95 %)", "namm minus it\n(95 %)")
    for name in ordered(result["policies"]):
        out.add_row(name, *own_size(name, result["policies"][name]), style=emphasis(name))
    return out


def _kinds_apart(result: Result) -> Table | None:
    """Kinds that evolution trained on, and those that it never saw; None unless there are both."""
    if not _apart([*result["policies"].values()]):
        return None
    out = empty()
    out.add_column(_where(result), overflow="fold")
    for name in GROUPS.values():
        add_columns(out, f"{name}\nscore", "namm minus it\n(95 %)")
    for name in ordered(result["policies"]):
        groups, cells = result["policies"][name]["groups"], list[str | Text]()
        for group in GROUPS:
            cells += [number(groups[group]["score"]), plus_minus(name, groups[group], "namm_difference")]
        out.add_row(name, *cells, style=emphasis(name))
    return out


def _where(result: Result) -> str:
    """The size at which `result.json` stands."""
    reference = result.get("reference_size")
    return "at the NAMM's own size" if reference is None else f"at {reference:g} of the cache"


def _costs(result: Result, points: Sequence[Point]) -> Table | None:
    """Speed and memory; None where they were not measured."""
    at_own = [p for p in points if p["level"] in (None, result["own_kept"]) and "peak_cache_bytes" in p]
    if not at_own:
        return None
    out = empty()
    out.add_column(_where(result), overflow="fold")
    add_columns(out, "prefill\ntok/s", "x full", "decode\ntok/s", "x full", "peak cache\nMB", "x full")
    for point in at_own:
        cells = []
        for what in RATES:
            cells += [f"{point[f'{what}_tokens_per_second']:,.0f}", f"{point[f'{what}_ratio']:.2f}"]
        cells += [f"{point['peak_cache_bytes'] / 1e6:.2f}", f"{point['peak_cache_ratio']:.2f}"]
        out.add_row(point["policy"], *cells, style=emphasis(point["policy"]))
    return out


def _levels(points: Sequence[Point]) -> list[float]:
    return sorted({point["level"] for point in points if point["level"] is not None})


def _head(level: float, result: Result) -> str:
    return f"{level:.3f}*" if level == result["own_kept"] else f"{level:g}"


def _at(points: Sequence[Point], name: str, level: float) -> Point | None:
    return next((p for p in points if p["policy"] == name and p["level"] == level), None)


def _by_score(points: Sequence[Point]) -> list[str]:
    """Policies that have a curve: the NAMM, then the others by falling mean score over all levels."""
    scores: dict[str, list[float]] = {}
    for point in points:
        if point["level"] is not None:
            scores.setdefault(point["policy"], []).append(point["score"])
    return sorted(scores, key=lambda name: (name != "namm", -sum(scores[name]) / len(scores[name]), name))
