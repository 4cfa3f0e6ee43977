"""One evolution job from its configuration to its run folder: what is started, in which order, and written where.

Knows no numbers: the search is in `evolution`, the comparison in `evaluation`, the pictures in `pictures`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

import namm_core
import workers
from orchestrator import card, evaluation, files, pictures, report, services, spec, storage
from orchestrator.display import Display
from orchestrator.evolution import Outcome, evolve, validation_samples
from orchestrator.journal import FILE, Journal, Lock
from orchestrator.spec import JobSpec
from orchestrator.storage import Mirror
from workers.config import EvaluatorConfig
from workers.prompts import masked_url
from workers.tasks.source import load_tasks
from workers.unit import PolicySpec, SampleRef

RUNS = Path(os.environ.get("NAMM_RUNS", "runs"))
"""Where run folders are: NAMM_RUNS (on a cluster, where a job's own folder does not last), else `runs` here."""
RESUME_PATIENCE = 60.0
"""Seconds that a job which goes on waits for its MLflow server."""


def run(job: JobSpec, resume: bool, display: Display) -> dict[str, Any]:
    """Runs a job to its end, or goes on with one that was interrupted; returns what `result.json` holds.

    Raises ValueError, one line, for bad input, before anything is written.
    """
    from workers import models  # imports torch

    folder = RUNS / job.name
    models.check(job.model)
    job = dataclasses.replace(job, model=models.pinned(job.model))  # what "main" means must not change on the way
    _check_tasks(job)
    store = job.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or services.default_store(RUNS.parent)
    services.check_mlflow(store, RESUME_PATIENCE if resume else 5.0)
    if not resume and (folder / FILE).exists():
        raise ValueError(f"{folder} exists: continue it with --resume, or choose another name (name=...)")
    if not resume and job.storage and storage.exists(job.storage):
        raise ValueError(f"{masked_url(job.storage)} holds a run: continue it with --resume, or choose another storage")
    with ExitStack() as stack:
        redis_url = stack.enter_context(services.prompt_redis(job.redis_url, needed=not resume))
        _prepare(folder)
        stack.enter_context(closing(Lock(folder)))
        mirror = stack.enter_context(Mirror(folder, job.storage)) if job.storage else None
        weights = models.weights_digest(job.model.path, job.model.revision)
        journal = stack.enter_context(closing(Journal(folder, _identity(job, weights))))
        spec.write(job, folder / "job.yaml")
        from orchestrator.cluster import connected
        from orchestrator.dispatch import Dispatcher
        from orchestrator.fleet import RayFleet
        from orchestrator.tracking import Tracker

        display.status("starting Ray and the workers")
        cpus = None if job.workers.count is None else job.workers.count * job.workers.threads
        stack.enter_context(connected(job.workers.ray_address, f"namm-{job.name}", cpus))
        config = EvaluatorConfig(job.model, job.tasks, job.memory, job.workers.threads, redis_url)
        fleet = stack.enter_context(closing(RayFleet(config, job.workers)))
        dispatcher = Dispatcher(fleet, job.workers, journal)
        tracker = Tracker(store, "namm", job.name, dataclasses.asdict(job), _tags(job), run_id=_mlflow_run(folder))
        files.write_json(folder / "mlflow.json", {"uri": masked_url(store), "run_id": tracker.run_id})
        finished = False
        try:
            result = _run(job, folder, dispatcher, tracker, display, mirror)
            finished = True
        finally:
            tracker.finish("FINISHED" if finished else "KILLED")
    return result


def _run(job: JobSpec, folder: Path, dispatcher, tracker, display: Display, mirror) -> dict[str, Any]:
    from namm_core import bam

    started = time.monotonic()
    journal, history = dispatcher.journal, []

    def recorded(record: dict[str, Any]) -> None:
        history.append(record)
        tracker.generation(record["generation"], _metrics(record, dispatcher, time.monotonic() - started))
        display.generation(record, dispatcher.cost)

    def tell(record: dict[str, Any], settled: list[SampleRef]) -> None:
        journal.tell(record, settled)
        recorded(record)
        files.write_lines(folder / "generations.jsonl", history)
        if mirror and mirror.lost:
            raise ValueError(mirror.lost)

    statistics = _statistics(job, dispatcher, display)
    display.start(job, dispatcher.fleet.wanted)
    for record in journal.told[: job.generations]:
        recorded(record)
    parameters = bam.num_parameters(job.memory)
    outcome = evolve(job, dispatcher.evaluate, statistics, parameters, tell, display.progress, list(journal.told))
    search_seconds = time.monotonic() - started
    validation = validation_samples(job)
    display.fitting()
    best, fit = evaluation.fit_size(dispatcher.evaluate, outcome.best, validation, job.evaluation.kept_at_most)
    _export(best, job, folder / "namm")
    samples = evaluation.held_out_samples(job.kinds, job.evaluation.samples)
    records = evaluation.compare(dispatcher.evaluate, best, job.evaluation.policies, samples, display.comparison)
    files.write_lines(folder / "samples.jsonl", records)
    result = report.summarise(
        records,
        {
            "name": job.name,
            "seed": job.seed,
            "generations": job.generations,
            "best_generation": outcome.best_generation,
            "evaluations": len(journal),
            "quarantined": sorted(map(list, journal.quarantined)),
            "trained_tasks": list(job.train),
            "heldout_tasks": list(job.heldout),
            "validation": _validation(outcome),
            "threshold": fit,
            "search_seconds": search_seconds,
            "seconds": time.monotonic() - started,
        },
    )
    files.write_json(folder / "result.json", result)
    _export(best, job, folder / "namm", card.text(job, result))
    draw(folder, history, dispatcher, best, samples)
    for path in [*sorted(folder.glob("*.png")), folder / "result.json", folder / "samples.jsonl"]:
        tracker.artifact(path)
    tracker.artifact(folder / "namm", "namm")
    tracker.metrics_final(_final_metrics(result))
    tracker.register(
        folder / "namm", job.registered_model, job.share.alias, card.figures(result), card.body(job, result)
    )
    return result


def _statistics(job: JobSpec, dispatcher, display: Display) -> tuple[np.ndarray, np.ndarray, float]:
    """The frozen feature statistics; collected once in a job's life, since another machine's would differ in bits."""

    def collect() -> list:
        display.status("collecting feature statistics with the full cache")
        prompts = [SampleRef(t, "train", i) for t in job.train for i in range(job.fitness.statistics_samples)]
        mean, var, count = dispatcher.ask("statistics", prompts)
        return [mean.tolist(), var.tolist(), float(count)]

    mean, var, count = dispatcher.journal.fact("statistics", collect)
    return np.array(mean, np.float32), np.array(var, np.float32), count


def draw(folder: Path, history: list[dict], dispatcher, best: PolicySpec, samples: list[SampleRef]) -> None:
    """Draws the run's pictures: fitness, kept fraction, and one held-out prompt with what became of its tokens."""
    pictures.fitness_curve(history, folder / "fitness.png")
    pictures.kept_heatmap(history, folder / "kept.png")
    tokens, held, relevant = dispatcher.ask("kept_map", best, samples[0])
    title = f"{samples[0].task}, held-out sample {samples[0].index}: share of layers and heads that hold each token"
    pictures.prompt_picture(tokens, held, relevant, folder / "prompt.png", title)


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"run folder {folder.absolute()} cannot be written ({error.strerror}); start in another folder"
        ) from None


def _identity(job: JobSpec, weights: str) -> str:
    """What the scores in a journal depend on: the configuration, the weights and our own code."""
    code = hashlib.sha256()
    for package in (namm_core, workers):
        for file in sorted(Path(package.__file__).parent.rglob("*.py")):
            code.update(file.read_bytes())
    return f"{job.digest()}-{weights[:16]}-{code.hexdigest()[:16]}"


def _check_tasks(job: JobSpec) -> None:
    known = load_tasks(job.tasks).tasks
    for task in job.kinds:
        if task not in known:
            raise ValueError(f"unknown task {task!r} in train or heldout; tasks of this set: {', '.join(known)}")


def _export(best: PolicySpec, job: JobSpec, path: Path, card: str | None = None) -> None:
    from namm_core import FeatureStatistics, Namm

    Namm(job.memory, best.theta, FeatureStatistics(*best.statistics)).save_pretrained(path, card)


def _mlflow_run(folder: Path) -> str | None:
    try:
        return json.loads((folder / "mlflow.json").read_text())["run_id"]
    except (OSError, ValueError, KeyError):
        return None


def _tags(job: JobSpec) -> dict[str, str]:
    note = f"Evolution of a NAMM on {', '.join(job.train)}; held-out kinds: {', '.join(job.heldout) or 'none'}."
    return {"namm.model": job.model.path, "mlflow.note.content": note}


def _metrics(record: dict[str, Any], dispatcher, seconds: float) -> dict[str, float]:
    cost = dispatcher.cost
    metrics = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "generation"}
    metrics |= {f"kept_layer/{i}": kept for i, kept in enumerate(record["kept_layers"])}
    metrics |= {f"score/{task}": score for task, score in record["tasks"].items()}
    metrics |= {
        "evaluations": cost.evaluations,
        "tokens_per_second": cost.tokens / seconds,
        "prompt_cache_hits": cost.hits,
        "prompt_cache_misses": cost.misses,
        "workers": dispatcher.workers,
        "workers_lost": cost.lost,
        "units_copied": cost.copies,
    }
    return metrics


def _final_metrics(result: dict[str, Any]) -> dict[str, float]:
    final = {}
    for name, row in result["policies"].items():
        final |= {f"heldout/{name}/score": row["mean"], f"heldout/{name}/kept": row["kept"]}
    return final


def _validation(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {"generation": r["generation"], **{k: v for k, v in r.items() if k.startswith("validation_")}}
        for r in outcome.generations
        if "validation_score" in r
    ]
