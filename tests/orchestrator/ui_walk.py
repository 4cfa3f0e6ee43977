"""The way through `namm ui` to a run's generations, verdict and memory, as a person goes it, in a real browser.

Knows MLflow's pages by the texts that a person reads there. Each page is kept as a picture.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.tracking.store import check_mlflow
from tests.orchestrator.browser import Page

TEXT = "document.body.innerText"


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """`namm ui` in a folder: the addresses that it prints, by what they are said to show."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "orchestrator.cli", "ui", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        addresses = dict(process.stdout.readline().strip().rsplit(": ", 1) for _ in range(3))
        check_mlflow(addresses["all runs"].partition("/#")[0], patience=120)
        yield addresses
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def click(page: Page, text: str) -> None:
    """Clicks the link of that text, when there is one."""
    link = f"[...document.querySelectorAll('a')].find((a) => a.textContent.trim() === {text!r})"
    page.until(f"String(Boolean({link}))", "true")
    page.run(f"{link}.click()")


def runs(page: Page, address: str, run: str, kept: Path) -> str:
    """The experiment's page, runs beside charts: its text when a chart of the run is drawn."""
    page.open(address)
    text = page.until(TEXT, f"{run} (fitness/mean)")  # the legend
    page.picture(kept)
    return text


def run(page: Page, name: str, kept: Path) -> str:
    """A run's own page, by a click on its name: its text."""
    click(page, name)
    text = page.until(TEXT, "Where it is")
    page.run("[...document.querySelectorAll('h4')].find((h) => h.innerText.startsWith('Description')).scrollIntoView()")
    page.picture(kept)
    return text


def from_the_start(page: Page, address: str, experiment: str, name: str) -> str:
    """From the first page of the server at an address, which lists the experiments, in two clicks to the run's own
    page: its text."""
    page.open("about:blank")  # a change behind # alone loads nothing
    page.open(address.partition("#")[0])
    click(page, experiment)
    click(page, name)
    return page.until(TEXT, "Where it is")
