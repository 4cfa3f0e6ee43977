"""The page of `namm inspect`: one HTML file that holds all it shows, for any browser, without a network.

Text from prompts reaches it as data, never as HTML. Knows no model and no figures' meaning.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports torch
    from workers.inspection import Reading

MOST_PROMPTS = 8
"""Prompts on one page, so that it stays light."""
SOURCES = Path(__file__).parent / "page_parts"


def render(title: str, found: Mapping[str, Any], readings: Sequence[Reading], pictures: Mapping[str, Path]) -> str:
    """The page; found: the mapping of `inspection.json`; pictures: PNG files by what they show."""
    style, script = ((SOURCES / name).read_text() for name in ("page.css", "page.js"))
    data = json.dumps([_prompt(r) for r in readings[:MOST_PROMPTS]], separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # no text may end the script element
    figures = "\n".join(_figure(name, path) for name, path in pictures.items())
    layers, heads = len(readings[0].held), len(readings[0].held[0])
    lead = (
        f"{len(readings)} held-out prompts, {layers} layers of {heads} KV heads, an update every "
        f"{found['update_interval']} tokens: {found['kept']:.1%} of the KV cache is held after a prompt."
    )
    filled = {"title": html.escape(title), "lead": html.escape(lead), "figures": figures, "data": data}
    filled |= {"style": style, "script": script}
    text = (SOURCES / "page.html").read_text()
    before, *rest = text.split("{{")
    parts = [before]
    for piece in rest:  # one pass: what is filled in is not looked at again
        name, _, after = piece.partition("}}")
        parts += [filled[name], after]
    return "".join(parts)


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


def _figure(name: str, path: Path) -> str:
    image = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(name)
    return f'<figure><img alt="{name}" src="data:image/png;base64,{image}"><figcaption>{name}</figcaption></figure>'
