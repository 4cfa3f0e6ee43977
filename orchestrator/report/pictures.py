"""Pictures of a run as PNG files: fitness, kept fractions, one prompt. Knows no MLflow, tokenizer or search.

Drawn without a display, with colours that colour-blind people can tell apart (Okabe and Ito's, and viridis).
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6b6b6b"
INK, PALE_INK = "#1a1a1a", "#808080"

COLUMNS = 112
MAX_LINES = 200
DPI = 150


def fitness_curve(generations: Sequence[Mapping], path: str | Path) -> None:
    """Fitness of the candidates, validation score of the search's mean, kept fraction and step size.

    A generation has generation (number), fitness_mean, fitness_best, fitness_std (over its candidates), kept
    (fraction), sigma, and may have validation_score and validation_full (the full cache on the same samples);
    None or absent: not measured then. Where `stage` changes, a line is drawn; the best score is the last stage's.
    Fitness may be on another scale than scores, so it has its own panel.
    Raises ValueError without any generation.
    """
    x = _numbers(generations)
    mean, best, spread = (_series(generations, key) for key in ("fitness_mean", "fitness_best", "fitness_std"))
    score, full = (_series(generations, key) for key in ("validation_score", "validation_full"))
    measured = np.isfinite(score)

    heights = [3, 3, 1.3, 1.3] if measured.any() else [3, 1.3, 1.3]
    figure = Figure(figsize=(9, 1.0 * sum(heights) + 1.1), layout="constrained")
    panels = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    figure.suptitle("Evolution of the memory", fontsize=13, fontweight="bold")

    axes = panels[0]
    axes.fill_between(x, mean - spread, mean + spread, color=BLUE, alpha=0.2, lw=0, label="mean ± 1 standard deviation")
    axes.plot(x, mean, color=BLUE, lw=1.8, label="mean of candidates", **_dots(x))
    axes.plot(x, best, color=ORANGE, lw=1.3, ls="--", label="best candidate", **_dots(x))
    axes.set_ylabel("fitness")
    _legend(axes)

    if measured.any():
        axes = panels[1]
        axes.plot(
            x[measured],
            score[measured],
            color=GREEN,
            lw=1.8,
            marker="o",
            ms=4,
            label="mean of the search, or of recent means",
        )
        if np.isfinite(full).any():
            known = np.isfinite(full)
            axes.plot(x, np.interp(x, x[known], full[known]), color=INK, lw=1.3, ls="--", label="full cache")
        last = np.array([row.get("stage") == generations[-1].get("stage") for row in generations])
        counts = last & measured if (last & measured).any() else measured  # each stage has a measure of its own
        top = int(np.nanargmax(np.where(counts, score, np.nan)))
        axes.plot(x[top], score[top], marker="*", ms=15, color=VERMILION, mec="white", ls="none", zorder=3,
                  label=f"best: {score[top]:.3f} in generation {x[top]}")  # fmt: skip
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, (low + high) / 2 - 0.03), max(high, (low + high) / 2 + 0.03))
        axes.set_ylabel("validation score\n(0 to 1)")
        _legend(axes)

    for axes, key, color, label in (
        (panels[-2], "kept", VERMILION, "kept fraction\nof the cache"),
        (panels[-1], "sigma", GREY, "step size\n(sigma)"),
    ):
        axes.plot(x, _series(generations, key), color=color, lw=1.8, **_dots(x))
        axes.set_ylabel(label)
    panels[-2].set_ylim(-0.03, 1.03)
    panels[-1].set_ylim(0, 1.2 * np.nanmax(_series(generations, "sigma")))
    panels[-1].set_xlabel("generation")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    panels[-1].set_xlim(x.min() - 0.5, x.max() + 0.5)
    begun = [i for i in range(1, len(x)) if generations[i].get("stage") != generations[i - 1].get("stage")]
    for i in begun:
        panels[0].annotate(generations[i]["stage"], (x[i] - 0.45, 0.03), xycoords=("data", "axes fraction"), fontsize=8)
    for axes in panels:
        for i in begun:
            axes.axvline(x[i] - 0.5, color=GREY, lw=1.0, ls=":")
        axes.grid(color="#e4e4e4", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels(panels)
    _save(figure, path)


def kept_heatmap(generations: Sequence[Mapping], path: str | Path) -> None:
    """Kept fraction by layer and generation, from each generation's kept_layers (a fraction per layer).

    Generations without kept_layers stay grey. Raises ValueError if none has them.
    """
    numbers = _numbers(generations)
    known = {row["generation"]: row["kept_layers"] for row in generations if row.get("kept_layers")}
    if not known:
        raise ValueError("no generation has kept_layers: there is no kept fraction by layer to draw")
    layers = len(next(iter(known.values())))
    first, last = int(numbers.min()), int(numbers.max())
    kept = np.full((layers, last - first + 1), np.nan)
    for number, fractions in known.items():
        kept[:, number - first] = fractions

    figure = Figure(figsize=(9, min(1.9 + 0.42 * layers, 10)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#c8c8c8")
    extent = (first - 0.5, last + 0.5, -0.5, layers - 0.5)
    picture = axes.imshow(
        kept,
        cmap="viridis",
        vmin=0,
        vmax=1,
        aspect="auto",
        origin="lower",
        extent=extent,
        interpolation="none",
    )
    axes.set_title("Share of the cache that each layer keeps", fontsize=13, fontweight="bold")
    axes.set_xlabel("generation")
    axes.set_ylabel("layer")
    axes.xaxis.set_major_locator(
        MaxNLocator(integer=True, nbins=min(12, kept.shape[1]), steps=[1, 2, 5, 10], min_n_ticks=1)
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(16, layers), steps=[1, 2, 5, 10], min_n_ticks=1))
    if kept.size <= 150:
        for (layer, column), value in np.ndenumerate(kept):
            if not math.isnan(value):
                ink = "black" if value > 0.6 else "white"
                axes.text(first + column, layer, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    bar = figure.colorbar(picture, ax=axes, pad=0.02)
    bar.set_label("kept fraction")
    _save(figure, path)


def prompt_picture(
    tokens: Sequence[str], held: np.ndarray, relevant: Sequence[int], path: str | Path, title: str
) -> None:
    """A prompt as wrapped text, each token shaded by how much of the memory still holds it.

    `tokens` are the texts of the prompt's tokens, with their spaces and newlines; `held` (tokens,) is the
    share 0..1 of layers and KV heads that hold each; `relevant` are the indices of the tokens that matter
    to the answer, which are framed. A prompt of more than 200 lines is cut, which the picture says.
    Raises ValueError if `held` does not have one share a token.
    """
    held = np.asarray(held, dtype=float)
    if held.shape != (len(tokens),):
        raise ValueError(f"held has shape {held.shape} for {len(tokens)} tokens: give one for each token")
    relevant = sorted(set(relevant))
    pieces = list(wrap_tokens(tokens))
    shown = [piece for piece in pieces if piece[1] < MAX_LINES]
    lines = 1 + max((line for _, line, _, _ in shown), default=0)

    # One unit of x is a character, one unit of y a line, so that the page grows with the text.
    size, high = 8.5, 0.2
    wide = _character_width(size)
    above, below, side = 1.15, 0.15, 0.3
    width, height = COLUMNS * wide + 2 * side, lines * high + above + below
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((side / width, below / height, COLUMNS * wide / width, lines * high / height))
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(lines, 0)
    axes.axis("off")

    shades = _shades()
    style: dict[str, Any] = {"family": "monospace", "fontsize": size, "va": "center_baseline", "parse_math": False}
    boxes, frames = [], []
    for index, line, column, text in shown:
        box = Rectangle((column + _indent(text), line + 0.06), len(text) - _indent(text), 0.88)
        box.set_facecolor(shades(held[index]))
        boxes.append(box)
        ink = INK if held[index] > 0 else PALE_INK
        axes.text(column, line + 0.5, text, color=ink, **style)
    axes.add_collection(PatchCollection(boxes, match_original=True, linewidth=0, clip_on=False))
    for first, last in _runs(shown, set(relevant)):
        start, end = first[2] + _indent(first[3]), last[2] + len(last[3])
        frames.append(Rectangle((start - 0.1, first[1] + 0.03), end - start + 0.2, 0.94))
    axes.add_collection(
        PatchCollection(frames, facecolor="none", edgecolor=VERMILION, linewidth=1.4, clip_on=False, zorder=3)
    )
    _prompt_heading(figure, (width, height, side), title, held, relevant, cut=len(shown) < len(pieces))
    _save(figure, path)


def wrap_tokens(tokens: Sequence[str]) -> Iterator[tuple[int, int, int, str]]:
    """Pieces (token, line, column, text) of the prompt in lines of 112 characters, in order.

    Words are not torn unless they are longer than a line; the space at which a line is broken is left out.
    A newline is shown as an arrow and obeyed; what the font cannot draw is shown as a box.
    """
    words = _word_lengths(tokens)
    glyphs = get_font(findfont(FontProperties(family="monospace"))).get_charmap()
    line = column = 0
    for index, token in enumerate(tokens):
        for part in re.findall(r"[^\n]*\n|[^\n]+", token.replace("\r\n", "\n")):
            ends = part.endswith("\n")
            text = "".join(c if ord(c) in glyphs else "□" for c in part.removesuffix("\n").expandtabs(4))
            text += "↵" if ends else ""
            length = words[index] if words[index] <= COLUMNS else len(text)
            if column and column + max(length, len(text)) > COLUMNS and text != "↵":
                line, column = line + 1, 0
                text = text[1:] if text[0] == " " and len(text) > 1 else text
            while text:
                yield index, line, column, text[:COLUMNS]
                column += len(text[:COLUMNS])
                text = text[COLUMNS:]
                if text:
                    line, column = line + 1, 0
            if ends:
                line, column = line + 1, 0


def _character_width(size: float) -> float:
    """Inches from one monospaced character to the next as Agg draws them: hinting rounds to whole pixels."""
    figure = Figure(dpi=DPI)
    text = figure.text(0, 0, "x" * 100, family="monospace", fontsize=size)
    return text.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 100 / DPI


def _word_lengths(tokens: Sequence[str]) -> list[int]:
    """Characters from each token to the end of its word, so that no word is torn at the end of a line."""
    lengths = [len(token) for token in tokens]
    for i in reversed(range(len(tokens) - 1)):
        if not tokens[i + 1][:1].isspace() and not tokens[i][-1:].isspace():
            lengths[i] += lengths[i + 1]
    return lengths


def _indent(text: str) -> int:
    """Spaces in front of a word; none where the text is nothing else."""
    return len(text) - len(text.lstrip(" ")) if text.strip() else 0


def _runs(pieces: Sequence[tuple[int, int, int, str]], relevant: set[int]) -> Iterator[tuple[tuple, tuple]]:
    """First and last piece of each run of relevant tokens within a line."""
    run: list[tuple[int, int, int, str]] = []
    for piece in pieces:
        if run and (piece[0] not in relevant or piece[1] != run[-1][1]):
            yield run[0], run[-1]
            run = []
        if piece[0] in relevant:
            run.append(piece)
    if run:
        yield run[0], run[-1]


def _shades() -> matplotlib.colors.Colormap:
    """White for none, then blues on which dark text can still be read."""
    colors = matplotlib.colormaps["Blues"](np.linspace(0.1, 0.64, 256))
    colors[0] = (1, 1, 1, 1)
    return matplotlib.colors.ListedColormap(colors)


def _prompt_heading(
    figure: Figure,
    sizes: tuple[float, float, float],
    title: str,
    held: np.ndarray,
    relevant: list[int],
    cut: bool,
) -> None:
    width, height, side = sizes
    left = side / width
    others = np.setdiff1d(np.arange(held.size), relevant)
    facts = [f"{held.size:,} tokens", f"held on average {_share(held)}"]
    if relevant:
        facts.append(f"relevant tokens {_share(held[relevant])}, others {_share(held[others])}")
    facts.append(f"forgotten everywhere {_share(held == 0)} of tokens")
    facts += [f"only the first {MAX_LINES} lines are shown"] if cut else []
    style: dict[str, Any] = {"ha": "left", "va": "center", "color": INK, "parse_math": False}
    title = textwrap.shorten(title, 92, placeholder=" …")
    figure.text(left, 1 - 0.25 / height, title, fontsize=12, fontweight="bold", **style)
    figure.text(left, 1 - 0.5 / height, "   ·   ".join(facts), fontsize=9, **style)

    middle = 1 - 0.8 / height
    bar = figure.add_axes((left, middle - 0.07 / height, 1.5 / width, 0.14 / height))
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=_shades(), aspect="auto", extent=(0, 1, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([0, 0.5, 1])
    bar.tick_params(labelsize=7, length=2, pad=1.5)
    after = (side + 1.6) / width
    figure.text(after, middle, "share of layers and KV heads that hold it", fontsize=9, **style)
    if relevant:
        x = (side + 4.65) / width
        frame = Rectangle((x, middle - 0.08 / height), 0.32 / width, 0.16 / height, transform=figure.transFigure)
        frame.set(facecolor="none", edgecolor=VERMILION, linewidth=1.4)
        figure.add_artist(frame)
        figure.text(x + 0.4 / width, middle, "relevant to the answer", fontsize=9, **style)
    pale = style | {"color": PALE_INK, "family": "monospace"}
    figure.text(1 - left, middle, "forgotten everywhere", fontsize=9, **pale | {"ha": "right"})


def _share(values: np.ndarray) -> str:
    return f"{np.mean(values):.2f}" if len(values) else "-"


def _numbers(generations: Sequence[Mapping]) -> np.ndarray:
    if not generations:
        raise ValueError("there is no generation to draw yet: run at least one")
    return np.array([row["generation"] for row in generations])


def _series(generations: Sequence[Mapping], key: str) -> np.ndarray:
    values = (row.get(key) for row in generations)
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _dots(x: np.ndarray) -> dict:
    """Dots where there are so few generations that a line alone would not show."""
    return {"marker": "o", "ms": 4} if len(x) <= 15 else {}


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=3, frameon=False, fontsize=9)


def _save(figure: Figure, path: str | Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=DPI, facecolor="white")
