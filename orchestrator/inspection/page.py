"""The page of `namm inspect`: one HTML file that holds all it shows, for any browser, without a network.

Text from prompts reaches it as data, never as HTML. Knows no model, and not what figures mean.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:  # imports torch
    from workers.reading import Reading

MOST_PROMPTS = 8
"""Prompts on one page, so that it stays light."""


def render(title: str, found: Mapping[str, Any], readings: Sequence[Reading], pictures: Mapping[str, Path]) -> str:
    """The page; found: the mapping of `inspection.json`; pictures: PNG files by what they show."""
    parts = PackageLoader("orchestrator.inspection", "page_parts")
    pages = Environment(loader=parts, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    layers, heads = len(readings[0].held), len(readings[0].held[0])
    return pages.get_template("page.html").render(
        title=title,
        lead=f"{len(readings)} held-out prompts, {layers} layers of {heads} KV heads, an update every "
        f"{found['update_interval']} tokens: {found['kept']:.1%} of the KV cache is held after a prompt.",
        figures={name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()},
        prompts=[_prompt(reading) for reading in readings[:MOST_PROMPTS]],
    )


def _prompt(reading: Reading) -> dict[str, Any]:
    """Each token's text, kind, whether it matters, and how many heads of each layer hold it."""
    return {
        "name": f"{reading.sample.task} {reading.sample.index}",
        "judged": reading.judged,
        "heads": reading.held.shape[1],
        "tokens": reading.tokens,
        "kinds": reading.kinds,
        "relevant": reading.relevant.astype(int).tolist(),
        "held": reading.held.sum(axis=1).T.tolist(),
    }
