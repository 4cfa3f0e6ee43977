"""The pictures of `namm inspect` as PNG files, from the mapping of `inspection.json`. Knows no model and no page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report.pictures import BLUE, DPI, GREY, ORANGE

TITLE: dict[str, Any] = {"fontsize": 13, "fontweight": "bold"}

AGE, FREQUENCY, OTHER = (
    "age: sine or cosine, period in tokens",
    "frequency: cycles in a window of the spectrogram",
    "features by name (docs/memory.md)",
)
PANELS = {AGE: ORANGE, FREQUENCY: BLUE, OTHER: BLUE}
"""Panels of what a score reacts to: title and colour."""


def draw(found: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draws all four pictures into `folder`; returns their paths by title, in order."""
    parts = {
        "Kept fraction by layer and head": ("heads.png", heads),
        "Kept fraction by token age": ("ages.png", ages),
        "Kept fraction by token kind": ("kinds.png", kinds),
        "What a score reacts to": ("sensitivity.png", sensitivity),
    }
    for name, picture in parts.values():
        picture(found, folder / name)
    return {title: folder / name for title, (name, _) in parts.items()}


def heads(found: Mapping[str, Any], path: Path) -> None:
    """Draws the kept fraction of each layer and KV head."""
    kept = np.array(found["kept_by_head"])
    layers, count = kept.shape
    figure = Figure(figsize=(min(3.2 + 0.7 * count, 12), min(1.8 + 0.45 * layers, 12)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(kept, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower", interpolation="none")
    axes.set_title("Kept by layer and head", **TITLE)
    axes.set_xlabel("KV head")
    axes.set_ylabel("layer")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=16, steps=[1, 2, 5, 10], min_n_ticks=1))
    if kept.size <= 150:
        for (layer, head), value in np.ndenumerate(kept):
            ink = "black" if value > 0.6 else "white"
            axes.text(head, layer, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(picture, ax=axes, pad=0.02).set_label("kept fraction")
    _save(figure, path)


def ages(found: Mapping[str, Any], path: Path) -> None:
    """Draws the kept fraction by age, of each layer and on average."""
    by_age = found["kept_by_age"]
    edges, layers = np.array(by_age["edges"]), np.array(by_age["layers"])
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(layers)))
    for layer, (row, shade) in enumerate(zip(layers, shades, strict=True)):
        label = f"layer {layer}" if len(layers) <= 8 or layer in (0, len(layers) - 1) else None
        axes.stairs(row, edges, baseline=None, color=shade, lw=1.2, label=label)
    axes.stairs(by_age["mean"], edges, baseline=None, color="black", lw=2, label="mean of layers")
    first = min(s["tokens"] - s["judged"] for s in found["samples"])
    last = max(s["tokens"] - s["judged"] for s in found["samples"])
    if last:
        axes.axvspan(
            0, last, color=GREY, alpha=0.15, lw=0, label="not judged yet" if first == last else "not all judged"
        )
    axes.set_title("Kept by age", **TITLE)
    axes.set_xlabel("age in tokens (0: the prompt's last token)")
    axes.set_ylabel("kept fraction")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(0, edges[-1])
    _plain(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    _save(figure, path)


def kinds(found: Mapping[str, Any], path: Path) -> None:
    """Draws the kept fraction of each kind of token: of all tokens, and of those that an update has judged."""
    by_kind = found["kept_by_kind"]
    names = list(by_kind)
    figure = Figure(figsize=(9, 1.6 + 0.62 * len(names)), layout="constrained")
    axes = figure.subplots()
    at = np.arange(len(names))[::-1]
    for shift, key, color, label in (
        (0.2, "kept", BLUE, "all tokens"),
        (-0.2, "judged", ORANGE, "judged by an update"),
    ):
        values = [by_kind[name][key] for name in names]
        counts = [by_kind[name]["tokens" if key == "kept" else "judged_tokens"] for name in names]
        axes.barh(at + shift, [value or 0 for value in values], height=0.36, color=color, label=label)
        for y, value, count in zip(at + shift, values, counts, strict=True):
            text = "none judged yet" if value is None else f"{value:.2f} of {count:,}"
            axes.text((value or 0) + 0.01, y, text, va="center", fontsize=9)
    axes.set_yticks(at, names)
    axes.set_xlim(0, 1.18)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_xlabel("kept fraction, mean over layers and heads")
    axes.set_title("Kept by kind of token", loc="left", **TITLE)
    _plain(axes)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=9)
    _save(figure, path)


def sensitivity(found: Mapping[str, Any], path: Path) -> None:
    """Draws the mean |d score / d feature|, a panel each for ages, frequencies and other features; dots are layers."""
    names = found["sensitivity"]["features"]
    mean, layers = np.array(found["sensitivity"]["mean"]), np.array(found["sensitivity"]["layers"])
    panels = {title: [i for i, name in enumerate(names) if _panel(name) == title] for title in PANELS}
    panels = {title: at for title, at in panels.items() if at}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    widths = [len(at) for at in panels.values()]
    row = figure.subplots(1, len(panels), sharey=True, width_ratios=widths, squeeze=False)[0]
    for axes, (title, at) in zip(row, panels.items(), strict=True):
        axes.bar(range(len(at)), mean[at], color=PANELS[title], width=0.75, label="mean of layers")
        for layer in layers:
            axes.plot(range(len(at)), layer[at], "o", ms=3, color="black", alpha=0.5, label="one layer")
        axes.set_xlabel(title)
        _plain(axes)
        if title == FREQUENCY:
            axes.set_xticks(range(len(at)), [names[i].split()[1] for i in at])
        else:
            short = [names[i].replace(" of age, period ", "\n") for i in at]
            axes.set_xticks(range(len(at)), short, fontsize=7, rotation=60)
    row[0].set_ylabel("mean |d score / d feature|")
    dots, labels = row[-1].get_legend_handles_labels()
    shown = {label: handle for handle, label in zip(dots, labels, strict=True)}
    row[-1].legend(
        shown.values(), shown, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=9
    )
    figure.suptitle("What a token's score reacts to, of its own features", **TITLE)
    _save(figure, path)


def _panel(name: str) -> str:
    return AGE if " of age, " in name else FREQUENCY if name.startswith("frequency ") else OTHER


def _plain(axes: Axes) -> None:
    axes.grid(color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=DPI, facecolor="white")
