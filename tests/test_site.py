"""The site of `docs/`: built without a warning, every link in it leads somewhere, and words are spelt right.

Needs the extra `docs`, which `make docs` installs; without it these tests are skipped. Nothing is asked of a network.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings", "codespell_lib"))),
    reason="the extra docs is not installed: make docs",
)


class Read(HTMLParser):
    """A page as a browser sees it: what it links to, what it loads, what can be linked to, and its first words."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors = {""}
        self.first = ""
        self._inside = self._titled = False
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        said = {name: value for name, value in attributes if value is not None}
        self.anchors |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        elif tag == "link" and said.get("rel") == "stylesheet":
            self.loaded.append(said["href"])
        elif tag in ("img", "script", "source", "iframe") and "src" in said:
            self.loaded.append(said["src"])
        self._titled |= tag == "h1"
        self._inside = tag == "p" and self._titled and not self.first or self._inside

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "h2"):
            self._inside = False

    def handle_data(self, data: str) -> None:
        self.first += data if self._inside else ""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Read]:
    """The pages of the site, as `make docs` builds it; fails on the first warning."""
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet, which hides warnings from --strict as well.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert built.returncode == 0, built.stdout + built.stderr
    return {page: Read(page) for page in sorted(folder.rglob("*.html")) if page.name != "404.html"}


def test_every_link_leads_somewhere(site):
    """Pages, files and places within pages; what a page loads stands beside it, so that it reads without a network."""
    broken, followed = [], 0
    for page, read in site.items():
        for link in [*read.links, *read.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert link in read.links, f"{page.name} loads {link}"
                continue
            target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
            there = target.is_file() and (target not in site or unquote(parts.fragment) in site[target].anchors)
            followed += 1
            if not there and not (link in read.links and target.is_dir()):
                broken.append(f"{page.name}: {link}")
    assert not broken
    assert followed > 1000


def test_every_page_says_first_what_it_answers(site):
    for page, read in site.items():
        assert len(read.first.split()) >= 10, f"{page.name} begins with {read.first!r}"


def test_public_names_are_described(site):
    """Each name that a user may import has its place in the pages made from docstrings."""
    import namm_core

    anchors = set().union(*(read.anchors for page, read in site.items() if page.parent.name == "api"))
    described = {part for anchor in anchors if anchor.startswith("namm_core.") for part in anchor.split(".")}
    assert set(namm_core.__all__) - described == set()


def test_pages_that_are_not_in_docs_are_in_the_site(site):
    """The README is the first page; links between it and `docs` are links between pages."""
    first = next(read for page, read in site.items() if page.name == "index.html")
    assert {"tutorial.html", "curve.html", "contributing.html"} <= set(first.links)
    assert not [link for link in first.links if link.endswith(".md")]


def test_spelling():
    checked = subprocess.run([sys.executable, "-m", "codespell_lib"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
