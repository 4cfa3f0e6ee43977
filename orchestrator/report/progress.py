"""What a person sees while a job runs: a live line, and one line for each generation. Computes no result."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.dispatch.dispatcher import Cost
from orchestrator.spec import JobSpec

HEADER = (
    f"{'generation':>12}{'fitness':>10}{'best':>9}{'mean':>9}{'full':>8}{'kept':>7}{'sigma':>9}"
    f"{'eval/s':>8}{'left':>8}   validation: score (full), kept"
)


@contextmanager
def shown(again: str, begun: bool, aside: bool = False) -> Iterator[Display]:
    """A display for a command that Ctrl-C or SIGTERM may interrupt.

    again: the command that continues it, printed after an interruption where there is something to continue; begun:
    whether there is from the start; aside: on standard error, where standard output is for a program. The
    KeyboardInterrupt is raised again.
    """
    display = Display(Console(highlight=False, stderr=aside), begun)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # `ray job stop`, or a machine that is taken away: as Ctrl-C
    try:
        yield display
    except KeyboardInterrupt:
        display.stop()
        what = f"interrupted; nothing is lost: {again}" if display.begun else "interrupted before anything was computed"
        display.console.print(f"\n{what}")
        raise
    finally:
        display.stop()


class Display:
    """Progress on a terminal; plain lines if the output is no terminal.

    Attributes:
        begun: whether there is a run to continue.
    """

    def __init__(self, console: Console | None = None, begun: bool = False) -> None:
        self.begun = begun
        self.console = console or Console(highlight=False)
        self._live: Live | None = None
        self._started = self._last = time.monotonic()
        self._total = 0
        self._title = ""
        self._headed = True
        """Whether the header of the generations' lines was printed."""
        self._done_evaluations = 0
        self._durations: list[float] = []

    def status(self, text: str) -> None:
        """Names the step of the set-up that begins."""
        self.console.print(f"[dim]{text} ...[/dim]")

    def note(self, text: str) -> None:
        """Prints a line that may be of use."""
        self.console.print(text, style="dim", markup=False, soft_wrap=True)

    def start(self, job: JobSpec, workers: int) -> None:
        """Announces the search: its stages, and what the columns of the lines that follow are."""
        self._total = sum(stage.generations for stage in job.plan)
        lines = []
        for stage in job.plan:
            lines += [
                f"{stage.name if job.stages else job.name}: {stage.generations} generations of {stage.population} "
                f"candidates on {stage.samples * len(stage.train)} samples ({', '.join(stage.train)})"
            ]
        name = f"{job.name}, {len(lines)} stages:\n" if job.stages else ""
        self.console.print(
            f"{name}{chr(10).join(lines)}, {workers} worker{'s' * (workers != 1)}\n"
            "[dim]fitness: mean of the candidates; best: the best of them; mean, full: task score of the search's "
            "mean and of the full cache on the same samples; kept: share of the cache that the mean keeps[/dim]"
        )
        self._headed = False
        self._last = time.monotonic()
        self._begin_live()

    def start_rule(self, start: dict[str, Any]) -> None:
        """Says which rule the search starts from, and how the others did on validation samples."""
        others = [
            f"{rule} {figures['fitness']:.3f}" for rule, figures in start["rules"].items() if rule != start["rule"]
        ]
        of = f" (of {', '.join(others)})" if others else ""
        text = f"start: {start['rule']}, validation fitness {start['validation_fitness']:.3f}{of}"
        self.console.print(f"[dim]{text}[/dim]", soft_wrap=True)

    def progress(self, generation: int, done: int, of: int) -> None:
        """Shows how many results of the current generation have arrived."""
        self._show(f"{generation + 1:>8}/{self._total:<3} {_bar(done, of)} {done}/{of} evaluations")

    def generation(self, record: dict[str, Any], cost: Cost) -> None:
        """Prints the line of a generation that was told to the search."""
        if not self._headed:
            self._headed = True
            self.console.print(HEADER, style="bold", soft_wrap=True)
        now = time.monotonic()
        took, self._last = now - self._last, now
        fresh, self._done_evaluations = cost.evaluations - self._done_evaluations, cost.evaluations
        if fresh:
            self._durations.append(took)
        recent = self._durations[1:][-5:]  # the first one has set-up in it
        left = _duration((self._total - record["generation"]) * sum(recent) / len(recent)) if recent else ""
        line = (
            f"{record['generation']:>8}/{self._total:<3}{record['fitness_mean']:>10.3f}{record['fitness_best']:>9.3f}"
            f"{record['mean_score']:>9.3f}{record['full_score']:>8.3f}{record['kept']:>7.2f}{record['sigma']:>9.4f}"
            f"{fresh / took if took > 0 else 0:>8.1f}{left:>8}"
        )
        if "validation_score" in record:
            line += (
                f"   {record['validation_score']:.3f} ({record['validation_full']:.3f}), "
                f"{record['validation_kept']:.2f}"
            )
            if record["best_generation"] == record["generation"]:
                line += "  *"
        if "saved_share" in record:
            line += f"   raced: {record['saved_share']:.0%} saved"
        self._print(line)
        if record["ended"]:
            goes_on = {"search": ": it starts anew with more candidates", "stage": "", "job": ""}[record["ended"]]
            if record["ended"] != "job" or record["generation"] < self._total or record["stage_number"] > 1:
                self.console.print(f"[dim]{record['stage']} ended: {record['reason']}{goes_on}[/dim]", soft_wrap=True)
        if record["ended"] == "job":
            self.stop()

    def preparing(self, done: int, of: int) -> None:
        """Shows how many prompts are ready."""
        self._begin("rendering and tokenising prompts")
        self._show(f"{'prompts':>12} {_bar(done, of)} {done}/{of}")
        if done == of:
            self.stop()
            self._title = ""

    def fitting(self) -> None:
        """Announces that the memory is being brought to its size."""
        self.console.print("[dim]bringing the memory to its size, on validation samples ...[/dim]")

    def comparison(self, policy: str, done: int, of: int) -> None:
        """Shows how many results of the comparison on held-out samples have arrived."""
        self._begin("held-out samples, all policies")
        self._show(f"{policy:>12} {_bar(done, of)} {done}/{of}")
        if done == of and not self.console.is_terminal:
            self.console.print(f"{policy:>12} {done}/{of}")

    def sizing(self, policy: str, looks: int, kept: float) -> None:
        """Shows how often a shifted threshold was tried, and what it kept the last time."""
        self._begin("the NAMM at each size: one shift of its threshold, found on validation samples of all kinds")
        self._show(f"{policy:>12} look {looks}: keeps {kept:.3f}")

    def tuning(self, policy: str, done: int, of: int) -> None:
        """Shows how many results of a round in which a policy's settings are tried have arrived."""
        self._begin("settings of each policy, tried on validation samples")
        self._show(f"{policy:>12} {_bar(done, of)} {done}/{of}")
        if done == of and not self.console.is_terminal:
            self.console.print(f"{policy:>12} {done}/{of}")

    def timing(self, policy: str, done: int, of: int) -> None:
        """Shows how many measurements of speed are done."""
        self._begin("speed and size, on one worker, policies in turn")
        self._show(f"{policy:>12} {_bar(done, of)} {done}/{of}")
        if done == of and not self.console.is_terminal:
            self.console.print(f"{'all':>12} {done}/{of}")

    def warning(self, text: str) -> None:
        """Prints what a person should know about the numbers that follow."""
        self.console.print(text, style="yellow", soft_wrap=True)

    def stop(self) -> None:
        """Ends the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _begin(self, title: str) -> None:
        """Begins a titled part with its own live line, unless it has begun already."""
        if self._title != title:
            self._title = title
            self.stop()
            self.console.print(f"\n{title}", style="bold")
            self._begin_live()

    def _begin_live(self) -> None:
        if self.console.is_terminal:
            self._live = Live(Text(""), console=self.console, transient=True, refresh_per_second=4)
            self._live.start()

    def _show(self, text: str) -> None:
        if self._live is not None:
            self._live.update(Text(text))

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


def _bar(done: int, of: int, width: int = 24) -> str:
    full = int(width * done / max(of, 1))
    return "█" * full + "░" * (width - full)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}"
