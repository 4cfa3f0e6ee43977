"""Zero-shot transfer: one NAMM, unchanged, on several targets; an evaluation each, then one table and one picture.

Knows only the order of the steps: an evaluation itself is `curve_job`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.evaluation import curve_job, curve_picture, curve_spec, transfer_tables
from orchestrator.evaluation.curve_spec import EvaluateSpec
from orchestrator.evaluation.held_out import metric_name
from orchestrator.evaluation.transfer_tables import Evaluated
from orchestrator.report.progress import Display
from orchestrator.storage import files
from orchestrator.storage.run_folder import RUNS, find_evaluation
from orchestrator.tracking.store import store_of
from orchestrator.tracking.ties import NOTE, ties

FILES = ("transfer.png", "transfer.md", "transfer.json")
"""What the run folder holds, and MLflow gets."""


def run(asked: Mapping[str, EvaluateSpec], name: str, resume: bool, display: Display) -> dict[str, Evaluated]:
    """Evaluates on each target in turn, in the run folder `<name>-<target>`, and writes the report into `<name>`.

    asked: what to do on each target, all with the same NAMM. Raises ValueError, one line, for bad input, before any
    target has begun.
    """
    folder = RUNS / name
    if (folder / "transfer.json").exists() and not resume:
        raise ValueError(f"{folder} exists: continue it with --resume, or choose another name (--name)")
    named = {target: _named(spec, f"{name}-{target}") for target, spec in asked.items()}
    for spec in named.values():
        curve_spec.checked(spec)
    found: dict[str, Evaluated] = {}
    for target, spec in named.items():
        display.status(f"target {target}: {spec.job.model.path}")
        begun = find_evaluation(str(RUNS / spec.job.name)) is not None
        found[target] = curve_job.run(spec, resume and begun, display)
        display.stop()
    _write(folder, next(iter(named.values())), found)
    return found


def _named(spec: EvaluateSpec, name: str) -> EvaluateSpec:
    return dataclasses.replace(spec, job=dataclasses.replace(spec.job, name=name))


def _write(folder: Path, first: EvaluateSpec, found: Mapping[str, Evaluated]) -> None:
    """The report, in the run folder and in MLflow. first: of any target, for the settings that all share."""
    from orchestrator.tracking.tracker import Tracker  # MLflow takes seconds, which bad input need not wait for

    folder.mkdir(parents=True, exist_ok=True)
    plain = {target: {"result": result, "points": points} for target, (result, points) in found.items()}
    files.write_json(folder / "transfer.json", plain)
    files.write(folder / "transfer.md", transfer_tables.markdown(found))
    panels = {f"{target}: {Path(result['model']).name}": points for target, (result, points) in found.items()}
    curve_picture.draw_panels(panels, folder / "transfer.png")
    store = store_of(first.job.mlflow_uri, RUNS)
    note = f"The NAMM {first.namm}, unchanged, on {', '.join(found)}.\n\n{transfer_tables.markdown(found)}"
    params = {"namm": first.namm, "targets": ", ".join(found)}
    tags = {"namm.kind": "transfer", NOTE: note, **ties(first.namm, store)}
    tracker = Tracker(store, first.job.mlflow_experiment, folder.name, params, tags)
    tracker.metrics_final(dict(_metrics(found)))
    for file in FILES:
        tracker.artifact(folder / file)
    tracker.finish()


def _metrics(found: Mapping[str, Evaluated]) -> Iterator[tuple[str, float]]:
    for target, (result, _) in found.items():
        for policy, entry in result["policies"].items():
            yield f"{target}/{metric_name(policy)}/score", entry["mean"]
            yield f"{target}/{metric_name(policy)}/kept", entry["kept"]
