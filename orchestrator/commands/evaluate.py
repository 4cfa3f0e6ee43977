"""`namm evaluate`: what a person asks for, as an `EvaluateSpec`. Runs nothing itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import yaml

from namm_core.config import from_mapping
from orchestrator import spec
from orchestrator.commands import Fractions, Policies, as_json, listed, overrides, print_json
from orchestrator.evaluation import curve_spec
from orchestrator.evaluation.curve_spec import ANEW, BUDGETS, EvaluateSpec
from orchestrator.policy_entries import PolicyEntry
from orchestrator.storage import run_folder


@click.command(short_help="draw the curve of score against cache size for all policies")
@click.argument("config")
@overrides
@click.option("--namm", help="folder or Hub id of a saved NAMM; default: the run's own")
@click.option("--model", help="another model, folder or Hub id (further settings: model.dtype=...)")
@click.option(
    "--policies", type=Policies(), help='such as "h2o,{name: snapkv, window: 64}"; default: all that there are'
)
@click.option("--budgets", type=Fractions(), help=f"kept fractions, comma-separated ({listed(BUDGETS)})")
@click.option("--samples", type=int, help="held-out samples over all kinds of task (200)")
@click.option("--validation", type=int, help="validation samples that sizes are found on (36)")
@click.option("--best", is_flag=True, help="each policy at its best setting, chosen on validation samples")
@click.option("--tuning", type=int, help="validation samples that settings are chosen on (24)")
@click.option(
    "--tuning-budgets", type=Fractions(), help="kept fractions that settings are tried at (those of --budgets)"
)
@click.option("--size", type=float, help="kept fraction of the main table, in place of the NAMM's own size")
@click.option("--timing", type=int, help="rounds in which speeds are measured (5; 0: none)")
@click.option("--name", help="name of its run folder (the job's, then -evaluate)")
@click.option("--resume", is_flag=True, help="continue an interrupted evaluation, or extend one")
@as_json
def command(
    config: str,
    overrides: tuple[str, ...],
    namm: str | None,
    model: str | None,
    name: str | None,
    resume: bool,
    best: bool,
    plain: bool,
    **sizes: Any,
) -> None:
    """Compares policies at several sizes of the cache, with the model and tasks of CONFIG: a job file (YAML) or a run;
    with --resume also an evaluation, by name or folder. KEY=VALUE replaces settings, by dotted keys."""
    given = {name: value for name, value in sizes.items() if value is not None}
    begun = run_folder.find_evaluation(config) if resume else None
    if begun is None:
        asked = _asked(config, overrides, namm, model, name, given)
    elif overrides or model or namm or name:
        raise ValueError("an evaluation that goes on keeps its settings: leave --model, --namm, --name, key=value")
    else:
        asked = dataclasses.replace(_read(begun / run_folder.EVALUATION), **given)
    if best:
        asked = dataclasses.replace(asked, policies=curve_spec.at_best(asked.policies, tuple(asked.others)))
    _run(asked, resume, plain)


def _run(asked: EvaluateSpec, resume: bool, plain: bool) -> None:
    from orchestrator.evaluation import curve_job, curve_tables  # matplotlib
    from orchestrator.report.progress import shown

    with shown(f"namm evaluate --resume {asked.job.name}", begun=resume, aside=plain) as display:
        result, points = curve_job.run(asked, resume, display)
    if plain:
        return print_json({"result": result, "points": points})
    display.console.print()
    display.console.print(curve_tables.table(result, points))
    folder = run_folder.RUNS / asked.job.name
    display.console.print(f"run folder: {folder}   picture: curve.png   all numbers: curve.md, curve.json")


def _asked(
    config: str,
    overrides: tuple[str, ...],
    namm: str | None,
    model: str | None,
    name: str | None,
    given: dict[str, Any],
) -> EvaluateSpec:
    """A new evaluation. Raises ValueError, one line."""
    replaced = [f"model={json.dumps({'path': model})}"] if model else []
    job = spec.read(run_folder.job_file(config), [*replaced, *overrides])
    if any(override.partition("=")[0].split(".")[0] == "memory" for override in overrides):
        raise ValueError("memory is the NAMM's own, from its config.json: leave memory settings out")
    namm = namm or str(run_folder.own_memory(config, job.name))
    if Path(namm).is_dir():
        namm = str(Path(namm).absolute())
    given.setdefault("policies", tuple(map(PolicyEntry, curve_spec.known_policies())))
    if model and ANEW not in [policy.name for policy in given["policies"]]:
        given["policies"] += (PolicyEntry(ANEW),)
    protocol = job.evaluation.protocol
    usual = f"{job.name}-evaluate" if protocol == "streaming" else f"{job.name}-evaluate-{protocol}"
    return EvaluateSpec(dataclasses.replace(job, name=name or usual), namm, **given)


def _read(path: Path) -> EvaluateSpec:
    try:
        plain: Any = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    return from_mapping(EvaluateSpec, plain, str(path))
