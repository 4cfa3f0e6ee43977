"""The story that is shipped with the documentation, as a reader opens it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.orchestrator.browser import Page

ROOT = Path(__file__).parents[3]
STORY = ROOT / "docs" / "story" / "recall-budget.html"
MOVING = ROOT / "docs" / "images" / "story.gif"
HELD = "[...document.querySelectorAll('#text span')].map((s) => s.style.getPropertyValue('--share')).join(' ')"


def text(page: Page, id: str) -> str:
    return page.run(f"document.getElementById('{id}').textContent")


def test_it_is_light():
    assert STORY.stat().st_size < 3_000_000 and MOVING.stat().st_size < 1_000_000
    assert MOVING.read_bytes().startswith(b"GIF89a")


def test_it_opens_and_its_slider_moves(chromium):
    chromium.open(STORY.as_uri())
    assert "With 30 % of the cache the memory scores" in text(chromium, "verdict")
    chromium.run("document.getElementById('when').focus()")
    chromium.press("Home")
    assert text(chromium, "which") == "before the first"
    seen = {}
    while text(chromium, "which") not in seen:
        seen[text(chromium, "which")] = chromium.run(HELD), text(chromium, "told")
        chromium.press("ArrowRight")
    assert list(seen) == ["before the first", *(f"{n} of 30" for n in range(5, 31, 5)), "the memory of the table"]
    held, told = zip(*seen.values(), strict=True)
    assert len(set(held)) >= 7 and len(set(told)) == 8  # the table's memory is that of one of the generations
    assert chromium.errors == [] and [url for url in chromium.requests if not url.startswith("file://")] == []


def test_its_memory_is_the_one_that_is_shipped(chromium):
    """The table of the story is the one in the memory's card."""
    chromium.open(STORY.as_uri())
    row = chromium.run("[...document.querySelectorAll('#final tr.namm > *')].map((cell) => cell.textContent)")
    card = (ROOT / "models" / "recall-budget-namm" / "README.md").read_text()
    assert row[0] == "namm" and json.dumps(row[2]).strip('"') in card


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(chromium, scheme):
    chromium.scheme(scheme)
    chromium.ask("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=False)
    chromium.open(STORY.as_uri())
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
