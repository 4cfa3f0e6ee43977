"""The site's pages that stand outside `docs`, and the links between both: a hook of MkDocs (mkdocs.yml).

In the repository, pages link to each other's files, so that they can be read there as they are. In the site the README
is the first page. A link to a file that is no page of the site leads to `repo_url`, where mkdocs.yml names one, and
otherwise becomes plain text. Knows no page's content.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages by their file in the repository: where they stand in the site."""
PIECE = re.compile(
    r"(?P<fence>^ *```.*?^ *```)"
    r"|\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<path>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)"
    r"|(?P<code>`[^`]+`)",
    re.DOTALL | re.MULTILINE,
)
"""A block of code, a link or an image, or code in a line: in code nothing is a link."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages from outside."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    names = {place: source for source, place in OUTSIDE.items()}
    folder = os.path.dirname(names.get(here, f"docs/{here}"))

    def target(path: str) -> str | None:
        source = os.path.normpath(os.path.join(folder, path))
        place = OUTSIDE.get(source, source.removeprefix("docs/") if source.startswith("docs/") else None)
        if place is not None and files.get_file_from_path(place):
            return os.path.relpath(place, os.path.dirname(here) or ".")
        return f"{config.repo_url.rstrip('/')}/blob/HEAD/{source}" if config.repo_url else None

    return PIECE.sub(lambda piece: _relinked(piece, target), markdown)


@event_priority(-100)  # after the plugin that writes the index
def on_post_build(config: MkDocsConfig) -> None:
    """Writes the search index a second time, as a script, which a browser also reads where there is no server."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text('utf-8')}", "utf-8")


def _relinked(piece: re.Match[str], target: Callable[[str], str | None]) -> str:
    path, anchor = piece["path"], piece["anchor"] or ""
    if not path or re.match(r"[a-z]+:", path):
        return piece[0]
    text = PIECE.sub(lambda inner: _relinked(inner, target), piece["text"])  # a picture that is a link
    found = target(path)
    return text if found is None else f"[{text}]({found}{anchor})"
