"""The points of a curve as tables: for a terminal of 80 columns, and as Markdown. Knows no files or pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from orchestrator.evaluation.points import UNBUDGETED
from orchestrator.report.summary import plus_minus

Points = Sequence[Mapping]


def table(result: Mapping, points: Points) -> Table:
    """Scores by policy and size; differences, then speed and memory, at the NAMM's own size."""
    whole = Table.grid()
    for part in (_scores(result, points), _caption(result, points), _differences(result), _costs(result, points)):
        if part is not None:
            whole.add_row(part)
            whole.add_row("")
    return whole


def markdown(result: Mapping, points: Points) -> str:
    """The same with every point's interval, speed and size."""
    levels = _levels(points)
    table_rows = [["policy", *(_head(level, result) for level in levels)]]
    for name in _by_score(points):
        cells = [_at(points, name, level) for level in levels]
        table_rows.append([f"`{name}`", *("" if p is None else f"{p['score']:.3f}" for p in cells)])
    text = [
        "## Score by kept fraction of the cache",
        "",
        *rows(table_rows),
        "",
        *str(_caption(result, points)).splitlines(),
        "",
    ]
    table_rows = [["policy", "budget", "kept", "score", "minus full (95 %)", "namm minus it (95 %)"]]
    heads = {
        "prefill_tokens_per_second": "prefill tokens/s (x full)",
        "decode_tokens_per_second": "decode tokens/s (x full)",
        "peak_cache_bytes": "peak cache MB (x full)",
    }
    timed = any("peak_cache_bytes" in point for point in points)
    table_rows[0] += heads.values() if timed else []
    for point in points:
        budget = "" if point["budget"] is None else f"{point['budget']:g}"
        row = [f"`{point['policy']}`", budget, f"{point['kept']:.3f}", f"{point['score']:.3f}"]
        row += [interval(point, field) for field in ("difference", "namm_difference")]
        if timed:
            for what in ("prefill", "decode"):
                row.append(f"{point[f'{what}_tokens_per_second']:,.0f} ({point[f'{what}_ratio']:.2f})")
            row.append(f"{point['peak_cache_bytes'] / 1e6:.2f} ({point['peak_cache_ratio']:.2f})")
        table_rows.append(row)
    return "\n".join([*text, "## All points", "", *rows(table_rows), ""])


def _scores(result: Mapping, points: Points) -> Table:
    levels = _levels(points)
    out = empty()
    out.add_column("score at kept\nfraction of", no_wrap=True)
    for level in levels:
        out.add_column(_head(level, result), justify="right", no_wrap=True)
    best = {
        level: max(p["score"] for p in points if p["level"] == level and p["policy"] not in UNBUDGETED)
        for level in levels
    }
    for name in _by_score(points):
        cells = []
        for level in levels:
            point = _at(points, name, level)
            text = "" if point is None else f"{point['score']:.3f}"
            cells.append(Text(text, "underline" if point is not None and point["score"] == best[level] else ""))
        out.add_row(name, *cells, style="bold" if name == "namm" else "")
    return out


def _caption(result: Mapping, points: Points) -> Text:
    single = [p for p in points if p["policy"] in UNBUDGETED]
    text = "   ".join(f"{p['policy']} {p['score']:.3f} (kept {p['kept']:.2f})" for p in single)
    off = max((abs(p["kept"] - p["level"]) for p in points if p["level"] is not None), default=0.0)
    text += f"\n* the NAMM as it is. {single[0]['samples']} held-out samples, the same ones everywhere; "
    text += f"what was kept is within {off:.3f} of the heads."
    if any("peak_cache_bytes" in point for point in points):
        text += (
            " Speed and size: one prompt at a time on one worker, policies in turn, median of "
            f"{result['timing']['rounds']} rounds, {result['timing']['decoded']} tokens decoded."
        )
    return Text(text, "dim")


def _differences(result: Mapping) -> Table:
    out = empty()
    out.add_column("at the NAMM's own size", no_wrap=True)
    for head in ("kept", "score", "minus full\n(95 %)", "namm minus it\n(95 %)"):
        out.add_column(head, justify="right", no_wrap=True)
    for name in ordered(result["policies"]):
        out.add_row(name, *own_size(name, result["policies"][name]), style="bold" if name == "namm" else "")
    return out


def own_size(name: str, entry: Mapping) -> list[str | Text]:
    """Kept fraction, score, and both differences of a policy in `result.json`."""
    both = [plus_minus(name, entry, field) for field in ("difference", "namm_difference")]
    return [f"{entry['kept']:.2f}", f"{entry['mean']:.3f}", *both]


def _costs(result: Mapping, points: Points) -> Table | None:
    """Speed and memory; None where they were not measured."""
    at_own = [p for p in points if p["level"] in (None, result["own_kept"]) and "peak_cache_bytes" in p]
    if not at_own:
        return None
    out = empty()
    out.add_column("at the NAMM's own size", no_wrap=True)
    for head in ("prefill\ntok/s", "x full", "decode\ntok/s", "x full", "peak cache\nMB", "x full"):
        out.add_column(head, justify="right", no_wrap=True)
    for point in at_own:
        cells = []
        for what in ("prefill", "decode"):
            cells += [f"{point[f'{what}_tokens_per_second']:,.0f}", f"{point[f'{what}_ratio']:.2f}"]
        cells += [f"{point['peak_cache_bytes'] / 1e6:.2f}", f"{point['peak_cache_ratio']:.2f}"]
        out.add_row(point["policy"], *cells, style="bold" if point["policy"] == "namm" else "")
    return out


def empty() -> Table:
    """A table without rows or columns."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _levels(points: Points) -> list[float]:
    return sorted({point["level"] for point in points if point["level"] is not None})


def _head(level: float, result: Mapping) -> str:
    return f"{level:.3f}*" if level == result["own_kept"] else f"{level:g}"


def _at(points: Points, name: str, level: float) -> Mapping | None:
    return next((p for p in points if p["policy"] == name and p["level"] == level), None)


def _by_score(points: Points) -> list[str]:
    """Policies that have a curve: the NAMM, then the others by falling mean score over all levels."""
    scores: dict[str, list[float]] = {}
    for point in points:
        if point["policy"] not in UNBUDGETED:
            scores.setdefault(point["policy"], []).append(point["score"])
    return sorted(scores, key=lambda name: (name != "namm", -sum(scores[name]) / len(scores[name]), name))


def ordered(policies: Mapping) -> list[str]:
    """Names of `result.json`'s policies: full cache, NAMM, oracle, then the others by falling score."""
    first = [name for name in ("full", "namm", "oracle") if name in policies]
    others = [name for name in policies if name not in first]
    return [*first, *sorted(others, key=lambda name: (-policies[name]["mean"], name))]


def interval(point: Mapping, field: str) -> str:
    """A point's difference with its interval, as text; empty for the policy that it is a difference to."""
    if field not in point or point["policy"] == {"difference": "full", "namm_difference": "namm"}[field]:
        return ""
    low, high = point[f"{field}_interval"]
    return f"{point[field]:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def rows(cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first row is its head."""
    lines = [cells[0], ["---", *["---:"] * (len(cells[0]) - 1)], *cells[1:]]
    return ["| " + " | ".join(line) + " |" for line in lines]
