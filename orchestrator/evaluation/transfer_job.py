"""Zero-shot transfer: one NAMM, unchanged, on several targets; an evaluation each, then one table and one picture.

Knows the order of things alone: what happens on a target is `evaluate`'s affair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.evaluation import curve_job as evaluate
from orchestrator.evaluation import curve_picture as curve
from orchestrator.evaluation import transfer_tables
from orchestrator.evaluation.curve_job import EvaluateSpec
from orchestrator.evaluation.transfer_tables import Evaluated
from orchestrator.report.progress import Display
from orchestrator.session import RUNS
from orchestrator.storage import files
from orchestrator.tracking.store import store_of


def run(aims: Mapping[str, EvaluateSpec], name: str, resume: bool, display: Display) -> dict[str, Evaluated]:
    """Evaluates on each target in turn, in the run folder `<name>-<target>`, and writes the report into `<name>`.

    aims: what to do on each target, all with the same NAMM. Raises ValueError, one line, for bad input, before any
    target has begun.
    """
    from orchestrator.tracking.tracker import Tracker

    folder = RUNS / name
    if (folder / "transfer.json").exists() and not resume:
        raise ValueError(f"{folder} exists: continue it with --resume, or choose another name (--name)")
    named = {
        of: dataclasses.replace(aim, job=dataclasses.replace(aim.job, name=f"{name}-{of}")) for of, aim in aims.items()
    }
    for aim in named.values():
        evaluate.checked(aim)
    found: dict[str, Evaluated] = {}
    for of, aim in named.items():
        display.status(f"target {of}: {aim.job.model.path}")
        begun = (RUNS / aim.job.name / evaluate.FILE).exists()
        found[of] = evaluate.run(aim, resume and begun, display)
        display.stop()
    folder.mkdir(parents=True, exist_ok=True)
    (first, *_) = named.values()
    files.write_json(folder / "transfer.json", {of: {"result": r, "points": p} for of, (r, p) in found.items()})
    files.write(folder / "transfer.md", transfer_tables.markdown(found))
    curve.draw_panels({f"{of}: {Path(r['model']).name}": p for of, (r, p) in found.items()}, folder / "transfer.png")
    store = store_of(first.job.mlflow_uri, RUNS)
    note = f"The NAMM {first.namm}, unchanged, on {', '.join(found)}."
    tracker = Tracker(
        store, "namm", name, {"namm": first.namm, "targets": ", ".join(found)}, {"mlflow.note.content": note}
    )
    tracker.metrics_final(dict(_metrics(found)))
    for file in ("transfer.png", "transfer.md", "transfer.json"):
        tracker.artifact(folder / file)
    tracker.finish()
    return found


def _metrics(found: Mapping[str, Evaluated]) -> Iterator[tuple[str, float]]:
    for of, (result, _) in found.items():
        for policy, entry in result["policies"].items():
            yield f"{of}/{policy}/score", entry["mean"]
            yield f"{of}/{policy}/kept", entry["kept"]
