"""The runs of a folder side by side: which are running, how far they have come, and how good their memories are."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from orchestrator.storage.journal import in_use

LOOKED = ("score", "kept", "full", "fitness")
"""What is said of a look at validation samples; `full` is the score of the full cache."""


@dataclass(frozen=True)
class Run:
    """What a run's folder says about it, while it runs or afterwards."""

    name: str
    state: str
    """`running`, `finished`, or `interrupted`."""
    settings: dict[str, Any]
    """What its job.yaml holds."""
    generations: list[dict[str, Any]]
    """Records of the generations told so far."""
    result: dict[str, Any] | None
    """What `result.json` holds; None if the run is not finished."""


def read_all(folder: Path) -> list[Run]:
    """The runs in a folder, by name. A damaged file is treated as missing, and is never an error."""
    found = []
    for job in sorted(folder.glob("*/job.yaml")):
        result = _json(job.parent / "result.json")
        state = "running" if in_use(job.parent) else "finished" if result else "interrupted"
        lines = _lines(job.parent / "generations.jsonl")
        found.append(Run(job.parent.name, state, _yaml(job), lines, result))
    return found


def table(runs: list[Run]) -> Table:
    """One line for each run, narrow enough for 80 columns.

    It has the generations told, and the scores of the memory and of the full cache: on validation samples, where the
    best run is marked, and, once the run is finished, on held-out samples.
    """
    shown = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("run", "state"):
        shown.add_column(column, no_wrap=True)
    shown.add_column("model", overflow="fold", min_width=8)
    for column in ("seed", "told", "vali-\ndation", "kept", "full", "held-\nout", "kept", "full"):
        shown.add_column(column, justify="right", no_wrap=True)
    looks = {run.name: _best_look(run) for run in runs}
    best = max((look["validation_fitness"] for look in looks.values() if look), default=None)
    for run in runs:
        look, settings = looks[run.name], run.settings
        row = [run.name, run.state, _model(settings)]
        row.append(str(settings.get("seed", 0)))
        row.append(f"{len(run.generations)}/{settings.get('generations', '?')}")
        if look:
            mark = "*" if look["validation_fitness"] == best and len(runs) > 1 else ""
            row += [mark + _number(look, "validation_score")]
            row += [_number(look, "validation_kept", 2), _number(look, "validation_full")]
        else:
            row += ["", "", ""]
        if run.result:
            policies = run.result.get("policies")
            full, namm = (policies.get(name) if isinstance(policies, dict) else None for name in ("full", "namm"))
            row += [_number(namm, "mean"), _number(namm, "kept", 2), _number(full, "mean")]
        shown.add_row(*row)
    return shown


def plain(run: Run, folder: Path) -> dict[str, Any]:
    """What the table says of a run, as plain JSON values; null is what is not known, or not yet.

    validation: the figures of its best look at validation samples; heldout: of the final table, by policy.
    """
    look, settings = _best_look(run), run.settings
    policies = run.result.get("policies") if run.result else None
    return {
        "name": run.name,
        "folder": str(folder),
        "state": run.state,
        "model": _model(settings),
        "seed": _integer(settings.get("seed", 0)),
        "told": len(run.generations),
        "generations": _integer(settings.get("generations")),
        "validation": look and {name: _finite(look.get(f"validation_{name}")) for name in LOOKED},
        "heldout": {
            policy: {name: _finite(entry.get(name)) for name in ("mean", "kept")}
            for policy, entry in (policies if isinstance(policies, dict) else {}).items()
            if isinstance(entry, dict)
        },
    }


def _best_look(run: Run) -> dict[str, Any] | None:
    """The best validation of the stage that the run is in; None if there was none yet."""
    looks = [record for record in run.generations if isinstance(record.get("validation_fitness"), int | float)]
    looks = [
        record for record in looks if record.get("stage") == looks[-1].get("stage")
    ]  # earlier stages had other tasks
    return max(looks, key=lambda record: record["validation_fitness"], default=None)


def _model(settings: dict[str, Any]) -> str:
    model = settings.get("model")
    return Path(str(model.get("path", "?"))).name if isinstance(model, dict) else "?"


def _number(record: Any, name: str, digits: int = 3) -> str:
    value = record.get(name) if isinstance(record, dict) else None
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "?"


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        found = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    except (OSError, ValueError, RecursionError):
        return []
    return [record for record in found if isinstance(record, dict)]
