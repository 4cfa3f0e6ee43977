"""`namm transfer`: which targets there are, what is asked of each, and what is printed. Runs nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from orchestrator import spec
from orchestrator.commands import Fractions, Policies, as_json, listed, print_json
from orchestrator.evaluation import curve_spec
from orchestrator.evaluation.curve_spec import ANEW, EvaluateSpec
from orchestrator.policy_entries import PolicyEntry
from orchestrator.storage.run_folder import RUNS
from workers.tasks.loading import load_tasks


@dataclass(frozen=True)
class Known:
    """A target that this repository ships a model for."""

    config: str
    """Job file."""
    samples: int
    """Held-out samples that a table is made of."""
    others: dict[str, str] = field(default_factory=dict)
    """More NAMMs to compare it with, by name."""


KNOWN = {
    "language": Known("configs/recall-qwen3.yaml", 70, {"namm-evolved-there": "models/recall-qwen3-namm"}),
    "video": Known("configs/clips.yaml", 70),
    "control": Known("configs/control.yaml", 100),
}
BUDGETS = (0.5,)
SAMPLES, VALIDATION = 100, 21
SHIPPED = ", ".join(f"{name} {known.samples}" for name, known in KNOWN.items())


@click.command(short_help="try a NAMM, unchanged, on models that it was not evolved on")
@click.argument("words", nargs=-1, metavar="[TARGET]... [KEY=VALUE]...")
@click.option("--namm", default="models/recall-namm", help="folder or Hub id of a saved NAMM (models/recall-namm)")
@click.option("--to", multiple=True, help="a target; more of them may follow")
@click.option(
    "--policies", type=Policies(), help='such as "h2o,{name: snapkv, window: 64}"; default: all that there are'
)
@click.option(
    "--budgets",
    type=Fractions(),
    help=f"kept fractions besides the NAMM's own, comma-separated, or none ({listed(BUDGETS)})",
)
@click.option("--samples", type=int, help=f"held-out samples of each target ({SHIPPED}; others {SAMPLES})")
@click.option("--validation", default=VALIDATION, help=f"samples that sizes are found on ({VALIDATION})")
@click.option("--name", default="transfer", help="name of the run folder (transfer)")
@click.option("--resume", is_flag=True, help="continue an interrupted one, with the same options as before")
@as_json
def command(
    words: tuple[str, ...], namm: str, to: tuple[str, ...], name: str, resume: bool, plain: bool, **asked: Any
) -> None:
    """Evaluates a NAMM, unchanged, on each TARGET (default: all): language, video, control, or a job file (YAML).

    KEY=VALUE replaces settings of all jobs, by dotted keys.
    """
    from orchestrator.evaluation import transfer_job, transfer_tables  # matplotlib
    from orchestrator.report.progress import shown

    overrides = [word for word in words if "=" in word]
    targets = [part for word in (*to, *words) if "=" not in word for part in word.split(",") if part] or list(KNOWN)
    namm = str(Path(namm).absolute()) if Path(namm).is_dir() else namm
    specs = dict(_asked(target, namm, overrides, **asked) for target in targets)
    with shown("the same command with --resume", begun=resume, aside=plain) as display:
        found = transfer_job.run(specs, name, resume, display)
    if plain:
        return print_json({target: {"result": result, "points": points} for target, (result, points) in found.items()})
    display.console.print(transfer_tables.table(found))
    display.console.print(f"run folder: {RUNS / name}   picture: transfer.png   all sizes: transfer.md, transfer.json")


def _asked(
    target: str,
    namm: str,
    overrides: list[str],
    policies: tuple[PolicyEntry, ...] | None,
    budgets: tuple[float, ...] | None,
    samples: int | None,
    validation: int,
) -> tuple[str, EvaluateSpec]:
    """A target's name, and what is to be done on it. Raises ValueError, one line."""
    known = KNOWN.get(target)
    if known is None and Path(target).suffix not in (".yaml", ".yml"):
        raise ValueError(f"--to: unknown target {target!r}; known: {', '.join(KNOWN)}, or a job file (YAML)")
    file = Path(known.config if known else target)
    if not file.is_file():
        raise ValueError(f"{file} does not exist: call namm transfer in a clone of the repository, or give job files")
    job = spec.read(file, overrides)
    if policies is None:
        names = [*curve_spec.known_policies(), ANEW]
        if not load_tasks(job.tasks).locates:
            names.remove("oracle")
        policies = tuple(map(PolicyEntry, names))
    return target if known else file.stem, EvaluateSpec(
        job,
        namm,
        policies,
        budgets=BUDGETS if budgets is None else budgets,
        samples=samples or (known.samples if known else SAMPLES),
        validation=validation,
        timing=0,
        others=dict(known.others) if known else {},
    )
