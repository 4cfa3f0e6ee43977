"""The `namm` command. Knows what a person may ask for, and says what is wrong in one line (exit status 2)."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from orchestrator import head, inspect_command, report, runs, services, spec
from orchestrator.dispatch import WorkFailed
from orchestrator.job import RUNS, run
from workers.prompts import masked_url

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the `namm` command; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options) or 0
    except (ValueError, WorkFailed) as error:
        print(f"namm: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"namm: {error.strerror}{where}; what was written is safe: make room, then --resume", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="namm", description="Evolve, evaluate and look at NAMMs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    evolve = commands.add_parser("evolve", help="run an evolution job")
    evolve.add_argument(
        "config", nargs="?", help="job file (YAML); with --resume also a run's name, folder or storage URL"
    )
    evolve.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    evolve.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    evolve.set_defaults(command=_evolve)

    shown = commands.add_parser("report", help="print a run's table")
    shown.add_argument("run", help="a run's name or folder")
    shown.add_argument("--markdown", action="store_true", help="as Markdown")
    shown.set_defaults(command=_report)

    listed = commands.add_parser("runs", help="list the runs of this folder and compare them")
    listed.set_defaults(command=_runs)

    ui = commands.add_parser("ui", help="serve the MLflow UI until Ctrl-C")
    ui.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (5000)")
    ui.add_argument("--uri", help="MLflow store; default: mlflow.db in this folder")
    ui.set_defaults(command=_ui)

    inspect_command.add_command(commands)
    head.add_command(commands)
    return parser


def _evolve(options: argparse.Namespace) -> int:
    from orchestrator.display import Display

    if options.config is None:
        raise ValueError("which job? namm evolve CONFIG.yaml, or namm evolve --resume RUN")
    job = _job(options)
    display = Display()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `ray job stop` and a machine that goes: as Ctrl-C
    try:
        result = run(job, options.resume, display)
    except KeyboardInterrupt:
        display.stop()
        display.console.print(f"\ninterrupted; nothing is lost: namm evolve --resume {job.name}")
        raise
    finally:
        display.stop()
    display.console.print(report.table(result))
    folder = RUNS / job.name
    display.console.print(f"run folder: {folder}   pictures: {folder}/*.png   the memory: {folder}/namm")
    display.console.print("all generations: make ui (or namm ui), then http://127.0.0.1:5000")
    return 0


def _job(options: argparse.Namespace) -> spec.JobSpec:
    """The job that is meant: a file; with --resume also a run by name, folder or storage URL."""
    if options.resume and "://" in options.config:
        from orchestrator import storage

        text = storage.fetch(options.config, "job.yaml")
        if text is None:
            raise ValueError(f"no run is kept at {masked_url(options.config)}")
        job = spec.parse(text.decode(), masked_url(options.config), options.overrides)
        return dataclasses.replace(job, storage=options.config)
    path = Path(options.config)
    if options.resume and not path.is_file():
        path = _folder(options.config) / "job.yaml"
    return spec.read(path, options.overrides)


def _report(options: argparse.Namespace) -> None:
    folder = _folder(options.run)
    try:
        result = json.loads((folder / "result.json").read_text())
    except OSError:
        raise ValueError(f"{folder} has no result yet; finish it: namm evolve --resume {folder.name}") from None
    if options.markdown:
        print(report.markdown(result))
    else:
        Console().print(report.table(result))


def _runs(options: argparse.Namespace) -> None:
    found = runs.read_all(RUNS)
    if not found:
        print("no runs in this folder yet: make evolve")
        return
    Console().print(runs.table(found))


def _ui(options: argparse.Namespace) -> None:
    uri = (
        options.uri or os.environ.get("MLFLOW_TRACKING_URI") or services.default_store(RUNS.parent)
    )  # where jobs put it
    file = services.sqlite_file(uri)
    if file is not None and not file.exists():
        raise ValueError(f"{file} does not exist yet: run a job first (make evolve), or name a store with --uri")
    command = services.ui_command(uri, options.port)
    print(f"MLflow UI on http://127.0.0.1:{options.port} (some 20 s to start; Ctrl-C ends it)", flush=True)
    os.execvpe(command[0], command, {**os.environ, **services.UI_ENVIRONMENT})


def _folder(name: str) -> Path:
    """A run by name or folder."""
    for folder in (Path(name), RUNS / name):
        if (folder / "job.yaml").is_file():
            return folder
    known = ", ".join(sorted(path.parent.name for path in RUNS.glob("*/job.yaml"))) or "none"
    raise ValueError(f"no run {name!r} in {RUNS}/; known: {known}")


if __name__ == "__main__":
    sys.exit(main())
