"""One evolution job from its configuration to its run folder: what is done, in which order, and written where.

The way of a candidate: `evolution.loop` asks the search for a vector and hands it to `Dispatcher.evaluate`, which ships
it to a worker (`workers.evaluator`); its score comes back through the journal, and the search is told. This
file has what comes before and after: samples and statistics, the NAMM's size, the comparison on held-out samples, and
the record of it all. Knows the order of the steps, and not how any number is computed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from namm_core.scoring import rules, scorer
from orchestrator import session
from orchestrator.evaluation.held_out import check_policies, compare, facts, held_out_samples, metric_name
from orchestrator.evaluation.sizes import Sizing
from orchestrator.evolution.budgets import at_budget
from orchestrator.evolution.loop import Evolved, Problem, evolve
from orchestrator.evolution.samples import Size, validation_samples
from orchestrator.evolution.start import given
from orchestrator.inspection import looks
from orchestrator.inspection.looks import Looks
from orchestrator.inspection.story import Story, render
from orchestrator.protocols import Recorder
from orchestrator.report import description, metrics, pictures
from orchestrator.report import model_card as card
from orchestrator.report.progress import Display
from orchestrator.report.summary import summarise
from orchestrator.session import Workplace
from orchestrator.spec import BEST, JobSpec
from orchestrator.storage import files
from orchestrator.storage.run_folder import JOB, MEMORY, RUNS, STORY
from orchestrator.tracking.ties import MEMORY_TAG, NOTE
from workers.tasks.loading import load_tasks
from workers.unit import PolicySpec, SampleRef

if TYPE_CHECKING:  # slow to import
    from orchestrator.dispatch.dispatcher import Dispatcher
    from workers.reading import Reading


def run(job: JobSpec, resume: bool, display: Display) -> dict[str, Any]:
    """Runs a job to its end, or continues one that was interrupted; returns what `result.json` holds.

    Raises ValueError, one line, for bad input, before anything is written.
    """
    policies = job.evaluation.policies
    check_policies(policies)
    if any(entry.best for entry in policies):
        raise ValueError("evaluation.policies: settings are chosen by namm evaluate alone: leave best out")
    for label in ("full", "namm"):
        if label not in [entry.label for entry in policies]:
            raise ValueError(f"evaluation.policies must name {label}: the table compares the others with it")
    samples = {"validation.samples": validation_samples(job), "evaluation.samples": _held_out(job)}
    job = session.checked(job, [entry.name for entry in policies], samples)
    with session.opened(job, resume, display, (JOB, job), _tags(job)) as workplace:
        return _run(job, workplace, display)


def _run(job: JobSpec, workplace: Workplace, display: Display) -> dict[str, Any]:
    started = time.monotonic()
    dispatcher, held_out = workplace.dispatcher, _held_out(job)
    size = load_tasks(job.tasks).size
    session.prepare(dispatcher, [*validation_samples(job, size=size), *held_out], display)
    statistics = session.statistics(job, dispatcher, display, size)
    display.note(f"to watch it, open {workplace.folder / STORY}: it is written anew at each validation")
    display.start(job, dispatcher.fleet.wanted)
    recorder = RunRecorder(job, workplace, display, started)
    past = list(dispatcher.journal.told)
    recorder.recall(past[: job.generations])
    outcome = evolve(job, _problem(job, dispatcher, statistics, size), recorder, past)
    search_seconds = time.monotonic() - started
    memory, threshold = _sized(job, workplace, outcome, size, display)
    _export(memory, job, workplace.folder / MEMORY)
    measured = dataclasses.replace(memory, protocol=job.evaluation.protocol)
    records = compare(dispatcher.evaluate, measured, job.evaluation.policies, held_out, display.comparison)
    files.write_lines(workplace.folder / "samples.jsonl", records)
    times = {"search_seconds": search_seconds, "seconds": time.monotonic() - started}
    result = summarise(records, _about(job, workplace, outcome, threshold) | times)
    for entry in job.evaluation.policies:
        result["policies"].get(entry.label, {}).update(facts(entry, job.memory, job.evaluation.protocol))
    files.write_json(workplace.folder / "result.json", result)
    _export(memory, job, workplace.folder / MEMORY, card.text(job, result))
    reading = draw(workplace, recorder.history, memory, held_out[0])
    recorder.tell(result, looks.of_reading(reading))
    _publish(job, workplace, result)
    return result


class RunRecorder(Recorder):
    """Records what an evolution does: in the journal and the run folder, in MLflow, and on the screen.

    started: `time.monotonic()` when the job began or was resumed.

    Attributes:
        history: records of the generations told so far.
        looks: what was held of one held-out prompt, at each look.
    """

    def __init__(self, job: JobSpec, workplace: Workplace, display: Display, started: float) -> None:
        self.job, self.workplace, self.display, self.started = job, workplace, display, started
        self.history: list[dict[str, Any]] = []
        dispatcher = workplace.dispatcher
        self.looks = Looks(partial(dispatcher.ask, "reading"), dispatcher.journal.fact, _held_out(job)[0])

    def recall(self, past: Iterable[dict[str, Any]]) -> None:
        """Shows the generations that were recorded before the job was interrupted."""
        for record in past:
            self._show(record)

    def begun(self, start: dict[str, Any]) -> None:
        """Shows which rule the search starts from."""
        self.display.start_rule(start)

    def progress(self, generation: int, done: int, of: int) -> None:
        """Shows how far a generation is."""
        self.display.progress(generation, done, of)

    def looked(self, generation: int, memory: PolicySpec) -> None:
        """Looks at what the search's mean holds of one prompt."""
        self.looks.take(generation, at_budget(memory, self.job.evaluation.budget))
        if not self.history:
            self.tell()

    def told(self, record: dict[str, Any], settled: Sequence[SampleRef]) -> None:
        """Records a generation, in the journal first. Raises ValueError if the copy of the run folder is lost."""
        self.workplace.dispatcher.journal.tell(record, list(settled))
        self._show(record)
        files.write_lines(self.workplace.folder / "generations.jsonl", self.history)
        if "validation_score" in record:
            self.tell()
        mirror = self.workplace.mirror
        if mirror is not None and mirror.lost:
            raise ValueError(mirror.lost)

    def stage_over(self, entry: dict[str, Any], best: PolicySpec, mean: PolicySpec) -> None:
        """Exports a stage's best memory and the mean it ended with, if the job has stages."""
        if self.job.stages:
            folder = self.workplace.folder / "stages" / entry["name"]
            _export(best, self.job, folder / MEMORY)
            _export(mean, self.job, folder / "mean")

    def tell(self, result: dict[str, Any] | None = None, final: dict[str, Any] | None = None) -> None:
        """Writes `story.html`, sends it to MLflow, and describes the run there. result, final: see `Story`, of a run
        that has ended."""
        self.workplace.tracker.tag(NOTE, description.text(self.job, self.workplace.folder, self.history, result))
        if not self.looks.taken:
            return  # no look succeeded, which was said
        path = self.workplace.folder / STORY
        story = Story(self.job, self.history, self.looks.prompt, self.looks.taken, result, final)
        files.write(path, render(story))
        self.workplace.tracker.artifact(path)

    def _show(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        figures = _metrics(record, self.workplace, time.monotonic() - self.started)
        self.workplace.tracker.generation(record["generation"], figures)
        self.display.generation(record, self.workplace.dispatcher.cost)


def _held_out(job: JobSpec) -> list[SampleRef]:
    return held_out_samples(job.kinds, job.evaluation.samples)


def _trained(outcome: Evolved) -> tuple[str, ...]:
    """Tasks of the stages that were reached."""
    return tuple(dict.fromkeys(task for stage in outcome.stages for task in stage["train"]))


def _problem(
    job: JobSpec, dispatcher: Dispatcher, statistics: tuple[np.ndarray, np.ndarray, float], size: Size
) -> Problem:
    """What is searched for: the memory's numbers, the rules among them that a job may start from, and who evaluates."""
    memory, rule = job.memory, job.start.rule
    names = [] if rule is None else rules.rules(memory) if rule == BEST else [rule]
    starts = given(job) or {name: _of_rule(job, name) for name in names}
    return Problem(
        dispatcher.evaluate,
        statistics,
        scorer.num_parameters(memory),
        size,
        together=dispatcher.evaluate_groups,
        rules=starts,
        linear=rules.linear_part(memory) if any(stage.part == "linear" for stage in job.plan) else None,
    )


def _of_rule(job: JobSpec, rule: str) -> np.ndarray:
    """(N,) float64: where the search starts that starts from a rule."""
    theta = rules.start(job.memory, rule)
    theta[-1] += job.start.bias
    return theta


def _sized(
    job: JobSpec, workplace: Workplace, outcome: Evolved, size: Size, display: Display
) -> tuple[PolicySpec, dict[str, float] | None]:
    """The best memory at the size that it is compared at, and what result.json says of its threshold: None for a
    memory that is given its size."""
    if job.evaluation.budget is not None:
        return at_budget(outcome.best, job.evaluation.budget), None
    display.fitting()
    validation = validation_samples(job, _trained(outcome), size)
    sized = Sizing(workplace.dispatcher.evaluate, outcome.best, validation).at_most(job.evaluation.kept_at_most)
    return sized.memory, {"shift": sized.shift, "kept": sized.kept, "score": sized.score}


def _about(job: JobSpec, workplace: Workplace, outcome: Evolved, threshold: dict[str, float] | None) -> dict[str, Any]:
    """What `result.json` says in addition to scores and times."""
    journal = workplace.dispatcher.journal
    start = {} if outcome.start is None else {"start": outcome.start}
    return start | {
        "name": job.name,
        "seed": job.seed,
        "generations": len(outcome.generations),
        "protocol": job.evaluation.protocol,
        "stages": outcome.stages,
        "asked": sum(record["asked"] for record in outcome.generations),
        "racing": _racing(outcome),
        "best_generation": outcome.best_generation,
        "evaluations": len(journal),
        "quarantined": sorted(map(list, journal.quarantined)),
        "trained_tasks": list(_trained(outcome)),
        "heldout_tasks": list(job.heldout),
        "validation": _validation(outcome),
        "threshold": threshold,
    }


def _publish(job: JobSpec, workplace: Workplace, result: dict[str, Any]) -> None:
    """Sends what the run folder holds to MLflow, and registers the memory there."""
    from orchestrator.tracking.registry import digest  # MLflow

    folder, tracker = workplace.folder, workplace.tracker
    for path in [*sorted(folder.glob("*.png")), folder / "result.json", folder / "samples.jsonl"]:
        tracker.artifact(path)
    tracker.artifact(folder / MEMORY, MEMORY)
    tracker.metrics_final(_final_metrics(result))
    figures, text = card.figures(result), card.body(job, result)
    tracker.tag(MEMORY_TAG, digest(folder / MEMORY))
    tracker.register(folder / MEMORY, job.registered_model, job.share.alias, figures, text)


def draw(workplace: Workplace, history: list[dict[str, Any]], memory: PolicySpec, sample: SampleRef) -> Reading:
    """Draws the run's pictures: fitness, kept fractions, and which tokens of one held-out prompt are still held;
    returns what is held of it."""
    folder = workplace.folder
    pictures.fitness_curve(history, folder / "fitness.png")
    pictures.kept_heatmap(history, folder / "kept.png")
    reading: Reading = workplace.dispatcher.ask("reading", memory, sample)
    title = f"{sample.task}, held-out sample {sample.index}: share of layers and heads that hold each token"
    share, relevant = reading.held.mean(axis=(0, 1)), np.flatnonzero(reading.relevant).tolist()
    pictures.prompt_picture(reading.tokens, share, relevant, folder / "prompt.png", title)
    return reading


def _export(memory: PolicySpec, job: JobSpec, path: Path, card: str | None = None) -> None:
    from namm_core import FeatureStatistics, Namm

    statistics = None if memory.statistics is None else FeatureStatistics(*memory.statistics)
    Namm(job.memory, memory.theta, statistics).save_pretrained(path, card)


def _racing(outcome: Evolved) -> dict[str, Any] | None:
    """How many of the candidates' evaluations racing saved; None if candidates did not race."""
    raced = [record for record in outcome.generations if "saved" in record]
    if not raced:
        return None
    saved, dropped = (sum(record[field] for record in raced) for field in ("saved", "dropped"))
    return {"saved": saved, "saved_share": fmean(r["saved_share"] for r in raced), "dropped": dropped}


def _tags(job: JobSpec) -> dict[str, str]:
    note = description.text(job, RUNS / job.name, [])
    return {"namm.model": job.model.path, "namm.kind": "evolution", NOTE: note}


def _metrics(record: dict[str, Any], workplace: Workplace, seconds: float) -> dict[str, float]:
    """Figures of a generation for MLflow; seconds: since the job began or was resumed."""
    dispatcher, cost = workplace.dispatcher, workplace.dispatcher.cost
    return metrics.of_generation(record) | {
        "workers/evaluations": cost.evaluations,
        "workers/tokens_per_second": cost.tokens / seconds,
        "workers/prompt_cache_hits": cost.hits,
        "workers/prompt_cache_misses": cost.misses,
        "workers/ready": dispatcher.workers,
        "workers/lost": cost.lost,
        "workers/units_copied": cost.copies,
    }


def _final_metrics(result: dict[str, Any]) -> dict[str, float]:
    final: dict[str, float] = {}
    for name, row in result["policies"].items():
        label = metric_name(name)
        final |= {f"heldout/{label}/score": row["mean"], f"heldout/{label}/kept": row["kept"]}
    return final


def _validation(outcome: Evolved) -> list[dict[str, Any]]:
    """What the looks at validation samples said."""
    return [
        {
            "generation": r["generation"],
            "stage": r["stage"],
            **{k: v for k, v in r.items() if k.startswith("validation_")},
        }
        for r in outcome.generations
        if "validation_score" in r
    ]
