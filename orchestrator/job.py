"""One evolution job from its configuration to its run folder: what is started, in which order, and written where.

Knows no numbers: the search is in `evolution`, the comparison in `evaluation`, the pictures in `pictures`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import namm_core
import workers
from orchestrator import evaluation, pictures, report, services, spec
from orchestrator.display import Display
from orchestrator.evolution import Outcome, evolve, validation_samples
from orchestrator.journal import Journal
from orchestrator.spec import JobSpec
from workers.config import EvaluatorConfig
from workers.tasks.source import load_tasks
from workers.unit import PolicySpec, SampleRef

logger = logging.getLogger(__name__)

RUNS = Path("runs")


def run(job: JobSpec, resume: bool, display: Display) -> dict[str, Any]:
    """Runs a job to its end, or goes on with one that was interrupted; returns what `result.json` holds.

    Raises ValueError, one line, for bad input, before anything is written.
    """
    from workers import models  # imports torch

    folder = RUNS / job.name
    models.check(job.model)
    _check_tasks(job)
    store = job.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or services.default_store(Path.cwd())
    services.check_mlflow(store)
    if not resume and (folder / "journal.jsonl").exists():
        raise ValueError(f"{folder} exists: continue it with --resume, or choose another name (name=...)")
    with ExitStack() as stack:
        redis_url = stack.enter_context(services.prompt_redis(job.redis_url))
        journal = _open(folder, job, models.weights_digest(job.model.path))
        stack.callback(journal.close)
        spec.write(job, folder / "job.yaml")
        from orchestrator.cluster import connected
        from orchestrator.dispatch import Dispatcher
        from orchestrator.tracking import Tracker

        display.status("starting Ray and the workers")
        cpus = None if job.workers.count is None else job.workers.count * job.workers.threads
        stack.enter_context(connected(job.workers.ray_address, f"namm-{job.name}", cpus))
        config = EvaluatorConfig(job.model, job.tasks, job.memory, job.workers.threads, redis_url)
        dispatcher = Dispatcher(config, job.workers, journal)
        stack.callback(dispatcher.close)
        tracker = Tracker(store, "namm", job.name, dataclasses.asdict(job), _tags(job), run_id=_mlflow_run(folder))
        _write_json(folder / "mlflow.json", {"uri": store, "run_id": tracker.run_id})
        finished = False
        try:
            result = _run(job, folder, dispatcher, tracker, display)
            finished = True
        finally:
            tracker.finish("FINISHED" if finished else "KILLED")
    return result


def _run(job: JobSpec, folder: Path, dispatcher, tracker, display: Display) -> dict[str, Any]:
    from namm_core import bam

    started = time.monotonic()
    display.status("collecting feature statistics with the full cache")
    prompts = [SampleRef(t, "train", i) for t in job.train for i in range(job.fitness.statistics_samples)]
    statistics = dispatcher.on_one("statistics", prompts)
    history: list[dict[str, Any]] = []

    def told(record: dict[str, Any]) -> None:
        history.append(record)
        _write_lines(folder / "generations.jsonl", history)
        tracker.generation(record["generation"], _metrics(record, dispatcher.cost, time.monotonic() - started))
        display.generation(record, dispatcher.cost)

    display.start(job, dispatcher.count)
    outcome = evolve(job, dispatcher.evaluate, statistics, bam.num_parameters(job.memory), told, display.progress)
    search_seconds = time.monotonic() - started
    validation = validation_samples(job)
    display.fitting()
    best, fit = evaluation.fit_size(dispatcher.evaluate, outcome.best, validation, job.evaluation.kept_at_most)
    _export(best, job, folder / "namm")
    samples = evaluation.held_out_samples(job.kinds, job.evaluation.samples)
    records = evaluation.compare(dispatcher.evaluate, best, job.evaluation.policies, samples, display.comparison)
    _write_lines(folder / "samples.jsonl", records)
    result = report.summarise(
        records,
        {
            "name": job.name,
            "seed": job.seed,
            "generations": job.generations,
            "best_generation": outcome.best_generation,
            "evaluations": len(dispatcher.journal),
            "quarantined": sorted(map(list, dispatcher.quarantined)),
            "trained_tasks": list(job.train),
            "heldout_tasks": list(job.heldout),
            "validation": _validation(outcome),
            "threshold": fit,
            "search_seconds": search_seconds,
            "seconds": time.monotonic() - started,
        },
    )
    _write_json(folder / "result.json", result)
    draw(folder, history, dispatcher, best, samples)
    for path in [*sorted(folder.glob("*.png")), folder / "result.json", folder / "samples.jsonl"]:
        tracker.artifact(path)
    tracker.artifact(folder / "namm", "namm")
    tracker.metrics_final(_final_metrics(result))
    return result


def draw(folder: Path, history: list[dict], dispatcher, best: PolicySpec, samples: list[SampleRef]) -> None:
    """Draws the run's pictures: fitness, kept fraction, and one held-out prompt with what became of its tokens."""
    pictures.fitness_curve(history, folder / "fitness.png")
    pictures.kept_heatmap(history, folder / "kept.png")
    tokens, held, relevant = dispatcher.on_one("kept_map", best, samples[0])
    title = f"{samples[0].task}, held-out sample {samples[0].index}: share of layers and heads that hold each token"
    pictures.prompt_picture(tokens, held, relevant, folder / "prompt.png", title)


def _open(folder: Path, job: JobSpec, weights: str) -> Journal:
    """The run's journal. What its scores depend on beyond the configuration: the weights and our own code."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"run folder {folder.absolute()} cannot be written ({error.strerror}); start in another folder"
        ) from None
    code = hashlib.sha256()
    for package in (namm_core, workers):
        for file in sorted(Path(package.__file__).parent.rglob("*.py")):
            code.update(file.read_bytes())
    return Journal(folder, f"{job.digest()}-{weights[:16]}-{code.hexdigest()[:16]}")


def _check_tasks(job: JobSpec) -> None:
    known = load_tasks(job.tasks).tasks
    for task in job.kinds:
        if task not in known:
            raise ValueError(f"unknown task {task!r} in train or heldout; tasks of this set: {', '.join(known)}")


def _export(best: PolicySpec, job: JobSpec, path: Path) -> None:
    from namm_core import FeatureStatistics, Namm

    Namm(job.memory, best.theta, FeatureStatistics(*best.statistics)).save_pretrained(path)


def _mlflow_run(folder: Path) -> str | None:
    try:
        return json.loads((folder / "mlflow.json").read_text())["run_id"]
    except (OSError, ValueError, KeyError):
        return None


def _tags(job: JobSpec) -> dict[str, str]:
    note = f"Evolution of a NAMM on {', '.join(job.train)}; held-out kinds: {', '.join(job.heldout) or 'none'}."
    return {"namm.model": job.model.path, "mlflow.note.content": note}


def _metrics(record: dict[str, Any], cost, seconds: float) -> dict[str, float]:
    metrics = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "generation"}
    metrics |= {f"kept_layer/{i}": kept for i, kept in enumerate(record["kept_layers"])}
    metrics |= {f"score/{task}": score for task, score in record["tasks"].items()}
    metrics |= {
        "evaluations": cost.evaluations,
        "tokens_per_second": cost.tokens / seconds,
        "prompt_cache_hits": cost.hits,
        "prompt_cache_misses": cost.misses,
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


def _write_json(path: Path, value: Any) -> None:
    _replace(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    _replace(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    part.replace(path)
