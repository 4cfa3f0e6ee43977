"""The charts of a run's story as SVG, which a page takes in, colours and moves a line over. Knows no page and no run.

Colours are left to the page's style sheet: classes `first`, `second`, `spread`, `cell`; the line at the generation that
is shown has the class `now`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 360, 42, 352, 8, 22
MOST_COLUMNS = 100
"""Columns of a heat map, so that a long run's page stays light."""

Points = Sequence[tuple[float, float]]
"""(x, y) in the chart's own units."""


@dataclass(frozen=True)
class Axis:
    """Places values on a line of the picture."""

    low: float
    high: float
    start: float
    """Where `low` is, in the picture's units."""
    end: float

    def at(self, value: float) -> float:
        """Where a value is."""
        return round(self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start), 1)


def across(high: float, low: float = 0.0) -> Axis:
    """The horizontal axis from `low` to `high`."""
    return Axis(low, high, LEFT, RIGHT)


def lines(
    label: str,
    x: Axis,
    first: Points,
    second: Points = (),
    spread: Sequence[tuple[float, float, float]] = (),
    dots: bool = False,
) -> str:
    """A line or two; spread: (x, low, high) of a band behind them; dots: whether points of the first are marked.

    label: says what the picture says, for those who do not see it. Points that are not finite are left out.
    """
    first, second = ([(g, y) for g, y in line if math.isfinite(y)] for line in (first, second))
    values = [y for _, y in (*first, *second)] + [y for _, *band in spread for y in band]
    y = upright(values, 150)
    parts = _scales(x, y, 150)
    if spread:
        above, below = [(g, high) for g, _, high in spread], [(g, low) for g, low, _ in reversed(spread)]
        parts.append(f'<polygon class="spread" points="{points(x, y, [*above, *below])}"/>')
    for kind, line in (("second", second), ("first", first)):
        if line:
            parts.append(f'<polyline class="{kind}" points="{points(x, y, line)}"/>')
    if dots:
        parts += [f'<circle class="dot" cx="{x.at(a)}" cy="{y.at(b)}" r="3"/>' for a, b in first]
    return _picture(label, parts, x.end, 150)


def cells(label: str, x: Axis, columns: Mapping[int, Sequence[float]]) -> str:
    """Fractions by generation (a column each, ending at its number) and layer (a row each, the first at the bottom)."""
    layers = len(next(iter(columns.values())))
    height = min(60 + 12 * layers, 260)
    y = Axis(0, layers, height - BOTTOM, TOP)
    step = math.ceil(len(columns) / MOST_COLUMNS)
    parts = [f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{height - TOP - BOTTOM}"/>']
    for number in sorted(columns)[step - 1 :: step]:
        left, right = x.at(number - step), x.at(number)
        for layer, share in enumerate(columns[number]):
            top, bottom = y.at(layer + 1), y.at(layer)
            parts.append(
                f'<rect class="cell" x="{left}" y="{top}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
                f'fill-opacity="{share:.3f}"/>'
            )
    parts += [_text(LEFT - 6, y.at(layer + 0.5) + 4, f"{layer}", "end") for layer in sorted({0, layers - 1})]
    return _picture(label, [*parts, *_numbers(x, height)], x.end, height)


def moving(label: str, x: Axis, y: Axis, level: float | None, line: str) -> str:
    """A line with the id `sizes-line`, whose points a page replaces; level: of a dashed line behind it."""
    parts = _scales(x, y, 150, whole=False)
    if level is not None:
        parts.append(f'<polyline class="second" points="{points(x, y, [(x.low, level), (x.high, level)])}"/>')
    parts.append(f'<polyline class="first" id="sizes-line" points="{line}"/>')
    return _picture(label, parts, None, 150)


def points(x: Axis, y: Axis, line: Points) -> str:
    """The attribute `points` of a line."""
    return " ".join(f"{x.at(a)},{y.at(b)}" for a, b in line)


def upright(values: Sequence[float], height: int = 150) -> Axis:
    """A vertical axis that has room for all finite values; from 0 to 1 where there are none."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = max(0.08 * (high - low), 0.01)
    return Axis(low - room, high + room, height - BOTTOM, TOP)


def _scales(x: Axis, y: Axis, height: int, whole: bool = True) -> list[str]:
    parts = []
    for share in (0.1, 0.5, 0.9):
        value = y.low + share * (y.high - y.low)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y.at(value)}" y2="{y.at(value)}"/>')
        parts.append(_text(LEFT - 6, y.at(value) + 4, f"{value:.2f}", "end"))
    return parts + _numbers(x, height, whole)


def _numbers(x: Axis, height: int, whole: bool = True) -> list[str]:
    """Numbers below the horizontal axis: at its ends and in the middle."""
    marks = [x.low, x.low + (x.high - x.low) / 2, x.high]
    if whole:
        marks = sorted({math.floor(mark) for mark in marks})
    anchors = {marks[0]: "start", marks[-1]: "end"}
    return [_text(x.at(mark), height - 6, f"{mark:g}", anchors.get(mark, "middle")) for mark in marks]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _picture(label: str, parts: Sequence[str], now: float | None, height: int) -> str:
    if now is not None:
        parts = [*parts, f'<line class="now" x1="{now}" x2="{now}" y1="{TOP}" y2="{height - BOTTOM}"/>']
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(label)}">'
    return head + "".join(parts) + "</svg>"
