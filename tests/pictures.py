"""Makes the pictures of the documentation that show pages: `python -m tests.pictures FOLDER RUN [OUT]`.

FOLDER is where `namm evolve` was called, RUN a finished run in it, OUT defaults to docs/images. Writes `story.gif`, the
slider of the run's story.html, and `mlflow-runs.png` and `mlflow-run.png`, what `namm ui` shows. Needs Chromium.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from orchestrator.storage.run_folder import STORY
from tests.orchestrator import ui_walk
from tests.orchestrator.browser import Page

WIDTH, HEIGHT = 1000, 600
COLOURS = 128
PARTS = "h2, .controls, #detail, .story figure:nth-of-type(odd) { display: none } #text { max-height: none }"
"""Style sheet of what is left out of a small picture of the story: headings, what is chosen, and of the figures all but
the score on validation samples, by generation and by size."""
SECONDS, LAST = 1.1, 4.0
"""How long each stop of the slider is shown, and the last one."""
SHADES = 0.6
"""Seconds after which the page's shades have come to rest."""


def story(page: Page, path: Path, out: Path) -> None:
    """The slider of a story, from the first stop to the last, as an animated GIF."""
    page.ask("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
    page.open(path.absolute().as_uri())
    page.run(f"document.head.append(Object.assign(document.createElement('style'), {{textContent: {PARTS!r}}}))")
    page.run("document.documentElement.style.overflow = document.getElementById('text').style.overflow = 'hidden'")
    page.run("scrollBy(0, document.querySelector('.bar').getBoundingClientRect().top - 8)")
    frames = []
    for stop in range(int(page.run("Number(when.max)")) + 1):
        page.run(f"stopAt({stop})")
        time.sleep(SHADES)
        frames.append(Image.open(io.BytesIO(page.shot())).convert("RGB"))
    palette = frames[-1].quantize(COLOURS)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [1000 * SECONDS] * (len(frames) - 1) + [1000 * LAST]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)


def small(path: Path) -> None:
    """A picture with few colours, which takes a third of the bytes."""
    Image.open(path).convert("RGB").quantize(COLOURS * 2, dither=Image.Dither.NONE).save(path, optimize=True)


def main(folder: Path, run: str, out: Path = Path("docs/images")) -> None:
    """Makes all of them."""
    with tempfile.TemporaryDirectory() as place:
        page = Page(Path(place))
        try:
            with ui_walk.served(folder) as addresses:
                ui_walk.runs(page, addresses["all runs"], run, out / "mlflow-runs.png")
                ui_walk.run(page, run, out / "mlflow-run.png")
            story(page, folder / "runs" / run / STORY, out / "story.gif")
        finally:
            page.close()
    for name in ("mlflow-runs.png", "mlflow-run.png"):
        small(out / name)
    for name in ("mlflow-runs.png", "mlflow-run.png", "story.gif"):
        print(f"{out / name}: {(out / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]), *sys.argv[2:3], *map(Path, sys.argv[3:]))
