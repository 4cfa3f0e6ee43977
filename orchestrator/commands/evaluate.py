"""`namm evaluate`: what a person asks for, as an `EvaluateSpec`. Runs nothing itself."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from namm_core.config import from_mapping
from orchestrator import spec
from orchestrator.evaluation import curve_job as evaluate
from orchestrator.evaluation import curve_tables
from orchestrator.evaluation.curve_job import ANEW, BUDGETS, FILE, EvaluateSpec
from orchestrator.report import runs
from orchestrator.session import RUNS
from orchestrator.spec import JobSpec


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `namm evaluate`."""
    parser = commands.add_parser("evaluate", help="draw the curve of score against cache size for all policies")
    parser.add_argument("config", help="job file (YAML) or a run; with --resume also the evaluation itself")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the file's")
    parser.add_argument("--namm", help="folder or Hub id of a saved NAMM; default: the run's own")
    parser.add_argument("--model", help="another model, folder or Hub id (further settings: model.dtype=...)")
    parser.add_argument("--policies", type=names, help="comma-separated; default: all that there are")
    listed = ",".join(f"{budget:g}" for budget in BUDGETS)
    parser.add_argument("--budgets", type=fractions, help=f"kept fractions, comma-separated ({listed})")
    parser.add_argument("--samples", type=int, help="held-out samples over all kinds of task (200)")
    parser.add_argument("--validation", type=int, help="validation samples that sizes are found on (36)")
    parser.add_argument("--timing", type=int, help="rounds in which speeds are measured (5; 0: none)")
    parser.add_argument("--name", help="name of the evaluation's run folder (the job's name, then -evaluate)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted evaluation, or extend one")
    parser.set_defaults(command=_command)


def asked_for(options: argparse.Namespace) -> EvaluateSpec:
    """The evaluation that is meant. Raises ValueError, one line."""
    given = {
        name: getattr(options, name)
        for name in ("policies", "budgets", "samples", "validation", "timing")
        if getattr(options, name) is not None
    }
    if options.resume and (found := _evaluation(options.config)):
        if options.overrides or options.model or options.namm or options.name:
            raise ValueError("an evaluation that goes on keeps its settings: leave --model, --namm, --name, key=value")
        return dataclasses.replace(_read(found), **given)
    job = _job(options)
    if any(override.partition("=")[0].split(".")[0] == "memory" for override in options.overrides):
        raise ValueError("memory is the NAMM's own, from its config.json: leave memory settings out")
    namm = options.namm or _own_namm(options.config, job)
    if Path(namm).is_dir():
        namm = str(Path(namm).absolute())
    given.setdefault("policies", evaluate.known_policies())
    if options.model:
        given["policies"] = (*given["policies"], ANEW)
    name = options.name or f"{job.name}-evaluate"
    return EvaluateSpec(dataclasses.replace(job, name=name), namm, **given)


def finished(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """What an evaluation's result.json and curve.json hold; None where `name` names no finished evaluation."""
    found = _evaluation(name)
    if found is None or not (found.parent / "curve.json").is_file():
        return None
    return tuple(json.loads((found.parent / file).read_text()) for file in ("result.json", "curve.json"))


def _command(options: argparse.Namespace) -> int:
    from orchestrator.report.progress import shown

    asked = asked_for(options)
    with shown(f"namm evaluate --resume {asked.job.name}") as display:
        result, points = evaluate.run(asked, options.resume, display)
    display.console.print()
    display.console.print(curve_tables.table(result, points))
    display.console.print(
        f"run folder: {RUNS / asked.job.name}   picture: curve.png   all numbers: curve.md, curve.json"
    )
    return 0


def _job(options: argparse.Namespace) -> JobSpec:
    path = Path(options.config)
    if not path.is_file():
        looks_like_file = path.suffix in (".yaml", ".yml")
        path = path if looks_like_file else runs.find(RUNS, options.config) / "job.yaml"
    model = [f"model={json.dumps({'path': options.model})}"] if options.model else []
    return spec.read(path, model + options.overrides)


def _own_namm(config: str, job: JobSpec) -> str:
    folder = (RUNS / job.name if Path(config).is_file() else runs.find(RUNS, config)) / "namm"
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: evolve a NAMM first (namm evolve), or name a saved one with --namm")
    return str(folder)


def _evaluation(name: str) -> Path | None:
    """The file of an evaluation by name or folder, if there is one."""
    return next((folder / FILE for folder in (Path(name), RUNS / name) if (folder / FILE).is_file()), None)


def _read(path: Path) -> EvaluateSpec:
    try:
        plain: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    return from_mapping(EvaluateSpec, plain, str(path))


def names(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(name for name in text.replace(" ", "").split(",") if name)


def fractions(text: str) -> tuple[float, ...]:
    """Kept fractions from `0.1,0.2`; argparse's own error where they are none."""
    try:
        return tuple(float(part) for part in names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no fractions: write them as 0.1,0.2,0.5") from None
