"""The `namm` command. Knows what a person may ask for, and says what is wrong in one line (exit status 2)."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import os
import sys
from pathlib import Path

from rich.console import Console

from orchestrator import spec
from orchestrator.commands import evaluate as evaluate_command
from orchestrator.commands import head as head_command
from orchestrator.commands import inspect as inspect_command
from orchestrator.commands import models as models_command
from orchestrator.commands import transfer as transfer_command
from orchestrator.dispatch.dispatcher import WorkFailed
from orchestrator.evaluation import curve_tables
from orchestrator.evolve_job import run
from orchestrator.report import runs, tables
from orchestrator.session import RUNS
from orchestrator.tracking import store
from workers.masking import masked_url

INTERRUPTED = 130
ASSUMED = ("tflops", "kept", "tokens")
"""Options of `evolve` that only a plan has."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the `namm` command; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(options, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # settings may stand behind options too
        options.overrides += rest
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
    planned = evolve.add_argument_group("plan")
    planned.add_argument("--dry-run", action="store_true", help="print what the job will take, and start nothing")
    planned.add_argument(
        "--tflops", type=float, help="with --dry-run: a GPU's peak TFLOP/s in bfloat16 (989, H100 SXM)"
    )
    planned.add_argument("--kept", type=float, help="with --dry-run: kept fraction to count with (0.3)")
    planned.add_argument("--tokens", type=int, help="with --dry-run: tokens of a prompt (the longest that tasks allow)")
    evolve.set_defaults(command=_evolve)

    evaluate_command.add_command(commands)
    transfer_command.add_command(commands)

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
    models_command.add_command(commands)
    head_command.add_command(commands)
    return parser


def _evolve(options: argparse.Namespace) -> int:
    from orchestrator.report.progress import shown

    if options.config is None:
        raise ValueError("which job? namm evolve CONFIG.yaml, or namm evolve --resume RUN")
    if options.dry_run:
        return _plan(options)
    if given := next((name for name in ASSUMED if getattr(options, name) is not None), None):
        raise ValueError(f"--{given} is for --dry-run")
    job = _job(options)
    with shown(f"namm evolve --resume {job.name}") as display:
        result = run(job, options.resume, display)
    display.console.print(tables.table(result))
    folder = RUNS / job.name
    display.console.print(f"run folder: {folder}   pictures: {folder}/*.png   the memory: {folder}/namm")
    display.console.print("all generations: make ui (or namm ui), then http://127.0.0.1:5000")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from orchestrator.plan import page as plan_page
    from orchestrator.plan.plan import Assumed, plan

    path = Path(options.config)
    if options.resume and not path.is_file() and "://" not in options.config:
        path = _folder(options.config) / "job.yaml"
    job = spec.read(path, options.overrides)
    assumed = Assumed(**{n: getattr(options, n) for n in ASSUMED if getattr(options, n) is not None})
    Console(width=plan_page.WIDTH).print(plan_page.page(plan(job, path.read_text(), options.overrides, assumed)))
    return 0


def _job(options: argparse.Namespace) -> spec.JobSpec:
    """The job that is meant: a file; with --resume also a run by name, folder or storage URL."""
    if options.resume and "://" in options.config:
        from orchestrator.storage import mirror as storage

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
    if (curve := evaluate_command.finished(options.run)) is not None:
        print(curve_tables.markdown(*curve)) if options.markdown else Console().print(curve_tables.table(*curve))
        return
    folder = _folder(options.run)
    try:
        result = json.loads((folder / "result.json").read_text())
    except OSError:
        raise ValueError(f"{folder} has no result yet; finish it: namm evolve --resume {folder.name}") from None
    if options.markdown:
        print(tables.markdown(result))
    else:
        Console().print(tables.table(result))


def _runs(options: argparse.Namespace) -> None:
    found = runs.read_all(RUNS)
    if not found:
        print("no runs in this folder yet: make evolve")
        return
    Console().print(runs.table(found))


def _ui(options: argparse.Namespace) -> None:
    uri = store.store_of(options.uri, RUNS)
    file = store.sqlite_file(uri)
    if file is not None and not file.exists():
        raise ValueError(f"{file} does not exist yet: run a job first (make evolve), or name a store with --uri")
    command = store.ui_command(uri, options.port)
    print(f"MLflow UI on http://127.0.0.1:{options.port} (some 20 s to start; Ctrl-C ends it)", flush=True)
    os.execvpe(command[0], command, {**os.environ, **store.UI_ENVIRONMENT})


def _folder(name: str) -> Path:
    """A run by name or folder."""
    return runs.find(RUNS, name)


if __name__ == "__main__":
    sys.exit(main())
