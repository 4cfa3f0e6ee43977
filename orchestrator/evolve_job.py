"""One evolution job from its configuration to its run folder: what is done, in which order, and written where.

Knows no numbers: the search is in `evolution`, the comparison in `evaluation`, the pictures in `pictures`; what is
started for it is in `workplace`.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator import session as workplace
from orchestrator.evaluation import held_out as evaluation
from orchestrator.evolution.loop import Outcome, evolve, validation_samples
from orchestrator.report import model_card as card
from orchestrator.report import pictures
from orchestrator.report import summary as report
from orchestrator.report.progress import Display
from orchestrator.spec import JobSpec
from orchestrator.storage import files
from workers.tasks.loading import load_tasks
from workers.unit import PolicySpec, SampleRef


def run(job: JobSpec, resume: bool, display: Display) -> dict[str, Any]:
    """Runs a job to its end, or goes on with one that was interrupted; returns what `result.json` holds.

    Raises ValueError, one line, for bad input, before anything is written.
    """
    held_out = evaluation.held_out_samples(job.kinds, job.evaluation.samples)
    samples = {"validation.samples": validation_samples(job), "evaluation.samples": held_out}
    job = workplace.checked(job, [entry.name for entry in job.evaluation.policies], samples)
    with workplace.opened(job, resume, display, ("job.yaml", job), _tags(job)) as place:
        return _run(job, place.folder, place.dispatcher, place.tracker, display, place.mirror)


def _run(job: JobSpec, folder: Path, dispatcher, tracker, display: Display, mirror) -> dict[str, Any]:
    from namm_core.scoring import scorer

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

    def stage_over(entry: dict[str, Any], best: PolicySpec, mean: PolicySpec) -> None:
        for name, policy in {"namm": best, "mean": mean}.items() if job.stages else ():
            _export(policy, job, folder / "stages" / entry["name"] / name)

    size = load_tasks(job.tasks).size
    held_out = evaluation.held_out_samples(job.kinds, job.evaluation.samples)
    workplace.prepare(dispatcher, [*validation_samples(job, size=size), *held_out], display)
    statistics = workplace.statistics(job, dispatcher, display, size)
    display.start(job, dispatcher.fleet.wanted)
    for record in journal.told[: job.generations]:
        recorded(record)
    parameters = scorer.num_parameters(job.memory)
    past = list(journal.told)
    outcome = evolve(job, dispatcher.evaluate, statistics, parameters, tell, display.progress, past, stage_over, size)
    trained = tuple(dict.fromkeys(task for stage in outcome.stages for task in stage["train"]))
    search_seconds = time.monotonic() - started
    validation = validation_samples(job, trained, size)
    display.fitting()
    best, fit = evaluation.fit_size(dispatcher.evaluate, outcome.best, validation, job.evaluation.kept_at_most)
    _export(best, job, folder / "namm")
    records = evaluation.compare(
        dispatcher.evaluate, best, tuple(e.name for e in job.evaluation.policies), held_out, display.comparison
    )
    files.write_lines(folder / "samples.jsonl", records)
    result = report.summarise(
        records,
        {
            "name": job.name,
            "seed": job.seed,
            "generations": len(outcome.generations),
            "stages": outcome.stages,
            "asked": sum(r["asked"] for r in outcome.generations),
            "racing": _racing(outcome),
            "best_generation": outcome.best_generation,
            "evaluations": len(journal),
            "quarantined": sorted(map(list, journal.quarantined)),
            "trained_tasks": list(trained),
            "heldout_tasks": list(job.heldout),
            "validation": _validation(outcome),
            "threshold": fit,
            "search_seconds": search_seconds,
            "seconds": time.monotonic() - started,
        },
    )
    files.write_json(folder / "result.json", result)
    _export(best, job, folder / "namm", card.text(job, result))
    draw(folder, history, dispatcher, best, held_out)
    for path in [*sorted(folder.glob("*.png")), folder / "result.json", folder / "samples.jsonl"]:
        tracker.artifact(path)
    tracker.artifact(folder / "namm", "namm")
    tracker.metrics_final(_final_metrics(result))
    tracker.register(
        folder / "namm", job.registered_model, job.share.alias, card.figures(result), card.body(job, result)
    )
    return result


def draw(folder: Path, history: list[dict], dispatcher, best: PolicySpec, samples: list[SampleRef]) -> None:
    """Draws the run's pictures: fitness, kept fraction, and one held-out prompt with what became of its tokens."""
    pictures.fitness_curve(history, folder / "fitness.png")
    pictures.kept_heatmap(history, folder / "kept.png")
    tokens, held, relevant = dispatcher.ask("kept_map", best, samples[0])
    title = f"{samples[0].task}, held-out sample {samples[0].index}: share of layers and heads that hold each token"
    pictures.prompt_picture(tokens, held, relevant, folder / "prompt.png", title)


def _racing(outcome: Outcome) -> dict[str, Any] | None:
    """What racing saved, of the candidates' evaluations; None where candidates did not race."""
    raced = [r for r in outcome.generations if "saved" in r]
    if not raced:
        return None
    saved, shares = sum(r["saved"] for r in raced), [r["saved_share"] for r in raced]
    return {"saved": saved, "saved_share": fmean(shares), "dropped": sum(r["dropped"] for r in raced)}


def _export(best: PolicySpec, job: JobSpec, path: Path, card: str | None = None) -> None:
    from namm_core import FeatureStatistics, Namm

    Namm(job.memory, best.theta, FeatureStatistics(*best.statistics)).save_pretrained(path, card)


def _tags(job: JobSpec) -> dict[str, str]:
    note = f"Evolution of a NAMM on {', '.join(job.train)}; held-out kinds: {', '.join(job.heldout) or 'none'}."
    return {"namm.model": job.model.path, "mlflow.note.content": note}


def _metrics(record: dict[str, Any], dispatcher, seconds: float) -> dict[str, float]:
    cost = dispatcher.cost
    metrics = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "generation"}
    metrics |= {f"kept_layer/{i}": kept for i, kept in enumerate(record["kept_layers"])}
    for name, key in {"score": "tasks", "base": "base", "normalised": "normalised"}.items():
        metrics |= {f"{name}/{task}": value for task, value in record[key].items()}
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
        {
            "generation": r["generation"],
            "stage": r["stage"],
            **{k: v for k, v in r.items() if k.startswith("validation_")},
        }
        for r in outcome.generations
        if "validation_score" in r
    ]
