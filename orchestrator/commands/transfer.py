"""The part of the `namm` command for zero-shot transfer: what may be asked for, and what is printed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import spec
from orchestrator.commands.evaluate import fractions, names
from orchestrator.evaluation import curve_job as evaluate
from orchestrator.evaluation.curve_job import ANEW, EvaluateSpec
from orchestrator.session import RUNS
from workers.tasks.loading import load_tasks


@dataclass(frozen=True)
class Known:
    """A target that this repository ships a model for."""

    config: str
    """Job file."""
    samples: int
    """Held-out samples that a table is made of."""
    others: dict[str, str] = field(default_factory=dict)
    """Further NAMMs to show beside, by name."""


KNOWN = {
    "language": Known("configs/recall-qwen3.yaml", 70, {"namm-evolved-there": "models/recall-qwen3-namm"}),
    "video": Known("configs/clips.yaml", 70),
    "control": Known("configs/control.yaml", 100),
}
BUDGETS = (0.5,)
SAMPLES, VALIDATION = 100, 21


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `namm transfer`."""
    parser = commands.add_parser("transfer", help="try a NAMM, unchanged, on models that it was not evolved on")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings that replace the jobs'")
    parser.add_argument(
        "--namm", default="runs/recall/namm", help="folder or Hub id of a saved NAMM (runs/recall/namm)"
    )
    known = ", ".join(KNOWN)
    parser.add_argument("--to", nargs="+", default=list(KNOWN), help=f"targets: {known} (all), or job files (YAML)")
    parser.add_argument("--policies", type=names, help="comma-separated; default: all that there are")
    listed = ",".join(f"{budget:g}" for budget in BUDGETS)
    parser.add_argument("--budgets", help=f"kept fractions besides the NAMM's own, comma-separated, or none ({listed})")
    shipped = ", ".join(f"{name} {known.samples}" for name, known in KNOWN.items())
    parser.add_argument("--samples", type=int, help=f"held-out samples of each target ({shipped}; others {SAMPLES})")
    parser.add_argument(
        "--validation", type=int, default=VALIDATION, help=f"samples that sizes are found on ({VALIDATION})"
    )
    parser.add_argument("--name", default="transfer", help="name of the run folder (transfer)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted one, asked for as before")
    parser.set_defaults(command=_command)


def asked_for(options: argparse.Namespace) -> dict[str, EvaluateSpec]:
    """What is to be done on each target. Raises ValueError, one line."""
    namm = str(Path(options.namm).absolute()) if Path(options.namm).is_dir() else options.namm
    if options.budgets is None:
        budgets = BUDGETS
    else:
        budgets = () if options.budgets == "none" else fractions(options.budgets)
    aims = {}
    words = [word for words in options.to for word in names(words)]
    overrides = [*options.overrides, *(word for word in words if "=" in word)]  # settings may stand behind --to
    for name in (word for word in words if "=" not in word):
        known = KNOWN.get(name)
        if known is None and Path(name).suffix not in (".yaml", ".yml"):
            raise ValueError(f"--to: unknown target {name!r}; known: {', '.join(KNOWN)}, or a job file (YAML)")
        file = Path(known.config if known else name)
        if not file.is_file():
            raise ValueError(
                f"{file} does not exist: call namm transfer in a clone of the repository, or give job files"
            )
        job = spec.read(file, overrides)
        policies = options.policies or (*evaluate.known_policies(), ANEW)
        if options.policies is None and not load_tasks(job.tasks).locates:
            policies = tuple(policy for policy in policies if policy != "oracle")
        others = dict(known.others) if known else {}
        samples = options.samples or (known.samples if known else SAMPLES)
        sizes = {"budgets": budgets, "samples": samples, "validation": options.validation, "timing": 0}
        aims[name if known else file.stem] = EvaluateSpec(job, namm, policies, others=others, **sizes)
    return aims


def _command(options: argparse.Namespace) -> int:
    from orchestrator.evaluation import transfer_job as transfer
    from orchestrator.evaluation import transfer_tables
    from orchestrator.report.progress import shown

    aims = asked_for(options)
    with shown("the same command with --resume") as display:
        found = transfer.run(aims, options.name, options.resume, display)
    display.console.print(transfer_tables.table(found))
    folder = RUNS / options.name
    display.console.print(f"run folder: {folder}   picture: transfer.png   all sizes: transfer.md, transfer.json")
    return 0
