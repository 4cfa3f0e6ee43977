"""The picture *score against kept fraction*: a curve for each policy, a line for the full cache. Knows no MLflow.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; each policy has its own marker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from orchestrator.report.pictures import BLUE, DPI, GREEN, GREY, INK, ORANGE, VERMILION

SKY, PURPLE, OCHRE = "#56B4E9", "#CC79A7", "#9a8700"
NAMM_COLOURS = (BLUE, SKY, "#00406b")
"""Colours of the NAMM, of the same one with other statistics, and of another one."""
OTHER_COLOURS = (VERMILION, GREEN, ORANGE, PURPLE, OCHRE, GREY)
MARKERS = "sD^vPX<>hp"
LABELS_APART = 0.042
"""Smallest distance between two labels, as a share of the picture's height."""
BARS_APART = 0.0035
"""Distance between the interval bars of two policies at one size, as a kept fraction."""


def draw(points: Sequence[Mapping], path: str | Path, title: str) -> None:
    """Draws the points of `curve.json` as a PNG.

    Bars are 95 % intervals of the paired difference to the full cache, around each score. Raises ValueError without
    a point of the full cache.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    full = _panel(axes, points, _styles(points), title)
    axes.set_xlabel("kept fraction of the KV cache, right after the prompt")
    axes.set_ylabel("score on held-out samples (mean over kinds of task)")
    labels = []
    for name, style in _styles(points).items():
        curve = sorted((p for p in points if p["policy"] == name), key=lambda p: p["kept"])
        if name != "oracle":
            labels.append(([p["score"] for p in reversed(curve)], curve[-1]["kept"], _label(name), style["color"]))
    _name_lines(axes, labels)
    note = f"{full['samples']} samples; bars, side by side: 95 % interval of the paired difference to the full cache"
    if any(point["policy"] == "namm" and point["budget"] is None for point in points):
        note += "; large mark: the NAMM as it is"
    figure.supxlabel(note, fontsize=9, color="#505050", x=0.01, ha="left")
    _save(figure, path)


def draw_panels(panels: Mapping[str, Sequence[Mapping]], path: str | Path) -> None:
    """Draws the points of several `curve.json` side by side as a PNG, each under its name; one legend for all."""
    styles = _styles([point for points in panels.values() for point in points])
    figure = Figure(figsize=(5 * len(panels) + 0.5, 6), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        full = _panel(axes, points, styles, title)
        axes.set_xlabel(f"kept fraction of the KV cache ({full['samples']} samples)")
    figure.axes[0].set_ylabel("score on held-out samples (mean over tasks)")
    names = [Line2D([], [], label=_label(name), **{**style, "ms": 6}) for name, style in styles.items()]
    note = "bars: 95 % interval of the paired difference to the full cache; large mark: a memory as it is"
    columns = min(5 * len(panels) // 2 + 1, 6)
    figure.legend(handles=names, title=note, loc="outside lower center", ncols=columns, frameon=False)
    _save(figure, path)


def _panel(axes: Axes, points: Sequence[Mapping], styles: Mapping[str, dict], title: str) -> Mapping:
    """Draws curves, the full cache's line and a title; returns the full cache's point, or raises ValueError."""
    full = next((point for point in points if point["policy"] == "full"), None)
    if full is None:
        raise ValueError("no point of policy 'full': there is nothing to compare with")
    axes.axhline(full["score"], color=INK, lw=1.4, ls="--", zorder=1)
    for number, (name, style) in enumerate(styles.items()):
        curve = sorted((p for p in points if p["policy"] == name), key=lambda p: p["kept"])
        # Bars of one size stand side by side, or they would hide each other.
        _curve(axes, curve, style, aside=(number - (len(styles) - 1) / 2) * BARS_APART)
    widest = max((p["kept"] for p in points if p["level"] is not None), default=1.0)
    axes.set_xlim(0.0, min(widest + 0.03, 1.015))
    scores = [point["score"] for point in points]
    room = max(0.07 * (max(scores) - min(scores)), 0.02)
    axes.set_ylim(min(scores) - room, max(scores) + room)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(title, fontsize=13, fontweight="bold", loc="left", parse_math=False)
    axes.grid(color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    where = axes.get_yaxis_transform()
    over = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    axes.annotate("full cache", (0.2, full["score"]), (0, 5), where, "offset points", color=INK, bbox=over, zorder=6)
    return full


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=DPI, facecolor="white")


def _styles(points: Sequence[Mapping]) -> dict[str, dict]:
    """The line style of each policy but the full cache, in the order of the points."""
    names = [name for name in dict.fromkeys(point["policy"] for point in points) if name != "full"]
    memories = [name for name in names if name.split("-")[0] == "namm"]
    styles: dict[str, dict] = {}
    for name, color in zip(memories, cycle(NAMM_COLOURS), strict=False):
        styles[name] = {"color": color, "marker": "o", "lw": 2.8, "ms": 7, "zorder": 4}
    looks = cycle(product(("-", (0, (4, 1.5))), OTHER_COLOURS))  # every colour once solid before one is dashed
    for name, (dashes, color), marker in zip(
        [n for n in names if n not in styles], looks, cycle(MARKERS), strict=False
    ):
        styles[name] = {"color": color, "marker": marker, "lw": 1.5, "ms": 5, "zorder": 3, "ls": dashes}
        if name == "oracle":
            styles[name] = {"color": INK, "marker": "*", "lw": 0, "ms": 15, "zorder": 5}
    return styles


def _curve(axes: Axes, curve: Sequence[Mapping], style: dict, aside: float) -> None:
    x, y = [p["kept"] for p in curve], [p["score"] for p in curve]
    axes.plot(x, y, mec="white", mew=0.8, **style)
    for point in curve:
        low, high = point["difference_interval"]
        if low is not None:
            bar = {"color": style["color"], "lw": 1.0, "capsize": 2, "alpha": 0.6, "zorder": 2}
            axes.errorbar(point["kept"] + aside, point["score"], (high - low) / 2, ls="none", **bar)
        if point["policy"] == "oracle":
            axes.annotate("oracle", (point["kept"], point["score"]), (9, -12), textcoords="offset points", color=INK)
        elif point["budget"] is None:
            axes.plot(point["kept"], point["score"], **{**style, "ms": 13, "lw": 0}, mec="white", mew=1.2)


def _name_lines(axes: Axes, labels: list[tuple[list[float], float, str, str]]) -> None:
    """Writes names to the right of the picture, at the end of each curve, moved apart if they would overlap.

    labels: scores from the end of the curve backwards (they order curves that end alike), the kept fraction at the end,
    name, colour.
    """
    low, high = axes.get_ylim()
    labels = sorted(labels, key=lambda label: label[0])
    wanted = [(scores[0] - low) / (high - low) for scores, *_ in labels]
    for (scores, kept, text, color), y in zip(labels, apart(wanted, LABELS_APART), strict=True):
        end = (kept, scores[0])
        axes.annotate(
            text,
            xy=end,
            xycoords="data",
            xytext=(1.03, y),
            textcoords="axes fraction",
            color=color,
            fontsize=10,
            fontweight="bold" if text.startswith("NAMM") else "normal",
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "lw": 0.6,
                "alpha": 0.5,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def apart(wanted: Sequence[float], distance: float) -> list[float]:
    """Positions for labels, in ascending order, at least `distance` apart and as near to `wanted` as possible.

    wanted: ascending positions. Neighbours that would overlap form a block around their common centre, which stays
    within 0 and 1 if it fits.
    """
    blocks: list[
        list[float]
    ] = []  # each: sum of the first positions that its members want, number of members, first position

    def placed(block: list[float]) -> list[float]:
        size = (block[1] - 1) * distance
        return [*block[:2], max(min(block[0] / block[1], 1.0 - size), 0.0)]

    for y in wanted:
        blocks.append(placed([y, 1, 0.0]))
        while len(blocks) > 1 and blocks[-1][2] < blocks[-2][2] + blocks[-2][1] * distance:
            last = blocks.pop()
            first = blocks.pop()
            blocks.append(placed([first[0] + last[0] - last[1] * first[1] * distance, first[1] + last[1], 0.0]))
    return [start + i * distance for _, members, start in blocks for i in range(int(members))]


def _label(policy: str) -> str:
    name, _, which = policy.partition("-")
    if name == "namm":
        return f"NAMM, {which.replace('-', ' ')}" if which else "NAMM"
    return policy.replace("_", " ")
