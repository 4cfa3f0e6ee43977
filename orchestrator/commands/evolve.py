"""`namm evolve`: runs a job, continues one, or says what it will take. Knows no search and no tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from orchestrator import spec
from orchestrator.commands import as_json, overrides, print_json
from orchestrator.report.verdict import verdict
from orchestrator.storage import run_folder


@click.command(short_help="run an evolution job")
@click.argument("config", required=False)
@overrides
@click.option("--resume", is_flag=True, help="continue an interrupted run")
@click.option("--dry-run", is_flag=True, help="print what the job will take, and start nothing")
@click.option("--tflops", type=float, help="with --dry-run: a GPU's peak TFLOP/s in bfloat16 (989, H100 SXM)")
@click.option("--kept", type=float, help="with --dry-run: kept fraction to count with (0.3)")
@click.option("--tokens", type=int, help="with --dry-run: tokens of a prompt (the longest that tasks allow)")
@as_json
def command(
    config: str | None, overrides: tuple[str, ...], resume: bool, dry_run: bool, plain: bool, **assumed: Any
) -> None:
    """Runs the evolution job in the file CONFIG (YAML); KEY=VALUE replaces its settings, by dotted keys.

    With --resume CONFIG may also be a run's name or folder, or the storage URL that it is kept at.
    """
    if config is None:
        raise ValueError("which job? namm evolve CONFIG.yaml, or namm evolve --resume RUN")
    given = {name: value for name, value in assumed.items() if value is not None}
    if dry_run and plain:
        raise ValueError("--json is for what a job finds: leave it out with --dry-run")
    if dry_run:
        _plan(config, overrides, resume, given)
    elif given:
        raise ValueError(f"--{next(iter(given))} is for --dry-run")
    else:
        _run(config, overrides, resume, plain)


def _run(config: str, overrides: tuple[str, ...], resume: bool, plain: bool) -> None:
    from orchestrator.evolve_job import run  # Ray, MLflow and matplotlib, which a plan does without
    from orchestrator.report.progress import shown

    job = _job(config, overrides, resume)
    with shown(f"namm evolve --resume {job.name}", begun=resume, aside=plain) as display:
        result = run(job, resume, display)
    if plain:
        return print_json({"verdict": verdict(result), "result": result})
    _end(display.console, job.name, result)


def _end(console: Console, name: str, result: dict[str, Any]) -> None:
    """What was won or lost, the table, where everything is, and what to do next."""
    from orchestrator.report import tables

    console.print(f"\n{verdict(result)}\n", style="bold", soft_wrap=True)
    console.print(tables.table(result))
    folder = run_folder.RUNS / name
    story, memory, pictures = folder / run_folder.STORY, folder / run_folder.MEMORY, folder / "*.png"
    lines = {"every generation": str(story)} if story.exists() else {}
    lines |= {
        "the memory": str(memory),
        "pictures": str(pictures),
        "next": f"namm evaluate {name}   all policies at all sizes",
        "": f"namm inspect {name}   what it keeps, by layer, age and kind of token",
        " ": "namm ui   all generations of all runs in MLflow (or make ui)",
    }
    for what, line in lines.items():
        console.print(f"{what:<18}{line}", markup=False, soft_wrap=True)


def _plan(config: str, overrides: tuple[str, ...], resume: bool, assumed: dict[str, Any]) -> None:
    from orchestrator.plan import page
    from orchestrator.plan.plan import Assumed, plan
    from orchestrator.services import upload

    if resume and "://" not in config:
        config = str(run_folder.job_file(config))
    job = spec.read(config, list(overrides))
    made = plan(job, Path(config).read_text("utf-8"), list(overrides), Assumed(**assumed))
    Console(width=page.WIDTH).print(page.page(made))
    if warning := upload.too_much(Path.cwd()):
        print(warning)


def _job(config: str, overrides: tuple[str, ...], resume: bool) -> spec.JobSpec:
    """The job that is meant. A run that is fetched from a URL continues to be copied there."""
    if not resume:
        return spec.read(config, list(overrides))
    found = run_folder.job_text(config)
    kept_at = [] if found.storage is None else [f"storage={json.dumps(found.storage)}"]
    return spec.parse(found.text, found.source, [*kept_at, *overrides])
