"""One evaluation: policies x budgets x tasks on held-out samples, from what was asked for to the run folder.

Knows the order of things alone: sizes are found in `calibration`, points in `points`, the picture is in `curve`, the
tables are in `curve_tables`, and what is started for it in `workplace`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from namm_core.config import NammConfig
from orchestrator import session as workplace
from orchestrator.evaluation import curve_picture as curve
from orchestrator.evaluation import curve_tables, points
from orchestrator.evaluation import held_out as evaluation
from orchestrator.evaluation.calibration import TOLERANCE, Calibration
from orchestrator.evaluation.points import Place
from orchestrator.report.progress import Display
from orchestrator.session import Workplace
from orchestrator.spec import JobSpec, Kinds
from orchestrator.storage import files
from orchestrator.storage.journal import policy_key
from workers.unit import PolicySpec, SampleRef, SampleResult

FILE = "evaluate.yaml"
"""What was asked for, in the run folder."""
ANEW = "namm-statistics-anew"
"""The NAMM with feature statistics of the model that it is evaluated on."""
BUDGETS = (0.1, 0.2, 0.3, 0.5, 0.75)
DECODED = 32
"""Tokens that a decoding speed is measured on."""


@dataclass(frozen=True)
class EvaluateSpec:
    """One evaluation."""

    job: JobSpec
    """Model, tasks and workers; its name is the evaluation's, its memory the NAMM's."""
    namm: str
    """Folder of a saved NAMM, or a repository of the Hub."""
    policies: Kinds
    """What is compared; `full` and `namm` are always among them."""
    budgets: tuple[float, ...] = BUDGETS
    """Kept fractions at which policies are compared, besides the NAMM's own."""
    samples: int = 200
    """Held-out samples, over all kinds."""
    validation: int = 36
    """Validation samples, over all kinds, on which the NAMM's threshold is brought to each budget."""
    timing: int = 5
    """Rounds in which speeds are measured; 0: none."""
    others: dict[str, str] = field(default_factory=dict)
    """Further NAMMs of the same configuration, by the name `namm-...` that they have in tables: folder or Hub id."""

    def __post_init__(self) -> None:
        for budget in self.budgets:
            if not 0.0 < budget < 1.0:
                raise ValueError(f"budgets are kept fractions between 0 and 1, not {budget:g}")
        for name in self.others:
            if not name.startswith("namm-") or name == ANEW:
                raise ValueError(f"a further NAMM is called namm-..., and not {ANEW}: {name!r}")
        for name, least in (("samples", len(self.job.kinds)), ("validation", 1), ("timing", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


def known_policies() -> Kinds:
    """Every policy that has a file, and the NAMM."""
    from namm_core import policies  # imports torch

    return ("full", "namm", *(name for name in policies.names() if name != "full"))


def run(spec: EvaluateSpec, resume: bool, display: Display) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs an evaluation to its end, or goes on with one; returns what `result.json` and `curve.json` hold.

    Raises ValueError, one line, for bad input, before anything is written.
    """
    spec, memories = checked(spec)
    purpose = "evaluate-" + "".join(f"{policy_key(m)}-" for m in memories.values())
    with workplace.opened(spec.job, resume, display, (FILE, spec), _tags(spec), purpose) as place:
        return _run(spec, memories, place, display)


def checked(spec: EvaluateSpec) -> tuple[EvaluateSpec, dict[str, PolicySpec]]:
    """The evaluation with nothing left open, and its NAMMs by name. Raises ValueError, one line, for bad input."""
    for name in spec.policies:
        if name not in (*known_policies(), ANEW, *spec.others):
            raise ValueError(f"unknown policy {name!r}; known: {', '.join((*known_policies(), ANEW))}")
    config, memory = _saved(spec.namm)
    memories = {"namm": memory}
    for name, place in spec.others.items():
        other, memories[name] = _saved(place)
        if other != config:
            raise ValueError(f"{place} has another configuration than {spec.namm}: evaluate it on its own")
    samples = {
        "samples": evaluation.held_out_samples(spec.job.kinds, spec.samples),
        "validation": evaluation.held_out_samples(spec.job.kinds, spec.validation, "validation"),
    }
    job = workplace.checked(dataclasses.replace(spec.job, memory=config, storage=None), spec.policies, samples)
    names = tuple(dict.fromkeys(("full", "namm", *spec.policies, *spec.others)))
    return dataclasses.replace(spec, job=job, policies=names, budgets=tuple(sorted(set(spec.budgets)))), memories


def _saved(place: str) -> tuple[NammConfig, PolicySpec]:
    """The one NAMM of a folder or a Hub repository. Raises ValueError."""
    from namm_core import Namm

    saved = Namm.from_pretrained(place)
    if saved.theta.ndim != 1:
        raise ValueError(f"{place} holds {len(saved.theta)} candidates: save one of them, Namm(config, theta[i])")
    given = saved.statistics
    statistics = None if given is None else (given.mean.numpy(), given.var.numpy(), given.count)
    return saved.config, PolicySpec("namm", theta=saved.theta.numpy(), statistics=statistics)


def _run(
    spec: EvaluateSpec, memories: dict[str, PolicySpec], place: Workplace, display: Display
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    started, job, dispatcher = time.monotonic(), spec.job, place.dispatcher
    samples = evaluation.held_out_samples(job.kinds, spec.samples)
    validation = evaluation.held_out_samples(job.kinds, spec.validation, "validation")
    workplace.prepare(dispatcher, [*samples, *validation], display)
    if ANEW in spec.policies:
        anew = workplace.statistics(job, dispatcher, display)
        memories = {**memories, ANEW: dataclasses.replace(memories["namm"], statistics=anew)}
    asked, shifts = _at_each_size(spec, memories, dispatcher, display)
    results = _evaluated({place: asked[place] for place in asked if place[0] == "namm"}, samples, dispatcher, display)
    own = round(float(np.mean([r.kept for r in results["namm", None] if r is not None])), 4)
    while own in spec.budgets:  # a level of its own, whatever it is
        own = round(own + 1e-4, 4)
    for name in spec.policies:
        if name in points.UNBUDGETED:
            asked[name, None] = PolicySpec(name)
        elif name not in memories:
            asked |= {(name, budget): PolicySpec(name, budget=budget) for budget in sorted((*spec.budgets, own))}
    for name in spec.policies:
        if name != "namm":
            mine = {place: policy for place, policy in asked.items() if place[0] == name}
            results |= _evaluated(mine, samples, dispatcher, display)
    records = _records(results, len(samples))
    files.write_lines(place.folder / "samples.jsonl", records)
    rounds = _timed(spec, asked, samples, dispatcher, display)
    costs = points.costs(rounds)
    costs |= {at: {**costs.get(at, {}), **found} for at, found in shifts.items()}
    tasks = {"trained_tasks": list(job.train), "heldout_tasks": list(job.heldout)}
    drawn = points.points(records, spec.budgets, own, tasks, costs)
    extra = {
        "name": job.name,
        "seed": job.seed,
        "generations": 0,
        "namm": spec.namm,
        "model": job.model.path,
        "own_kept": own,
        "timing": {"rounds": spec.timing, "decoded": DECODED},
        "evaluations": len(dispatcher.journal),
        "quarantined": sorted(map(list, dispatcher.journal.quarantined)),
        **tasks,
        "seconds": time.monotonic() - started,
    }
    result = points.summarised(records, None, own, extra)
    _write(place, result, drawn)
    return result, drawn


def _at_each_size(
    spec: EvaluateSpec, memories: dict[str, PolicySpec], dispatcher, display: Display
) -> tuple[dict[Place, PolicySpec], dict[Place, dict[str, float]]]:
    """Each memory as it is (budget None) and brought to each budget; and what the validation samples said of it."""
    asked: dict[Place, PolicySpec] = {}
    said: dict[Place, dict[str, float]] = {}
    for name, memory in memories.items():
        found = _calibrated(spec, memory, dispatcher, lambda looks, kept, name=name: display.sizing(name, looks, kept))
        for budget, (shift, kept) in found.items():
            asked[name, budget] = evaluation.shifted(memory, shift)
            said[name, budget] = {"shift": shift, "validation_kept": kept}
            if budget is not None and abs(kept - budget) > TOLERANCE:
                display.warning(f"{name} cannot be brought to {budget:g}: {kept:.3f} is the nearest")
    return asked, said


def _calibrated(
    spec: EvaluateSpec, memory: PolicySpec, dispatcher, progress: Callable[[int, float], None]
) -> dict[float | None, tuple[float, float]]:
    """For each budget, and None for the NAMM as it is: shift, and the fraction kept on the validation samples."""
    samples = evaluation.held_out_samples(spec.job.kinds, spec.validation, "validation")

    looks = 0

    def kept(shift: float) -> float:
        nonlocal looks
        (row,) = dispatcher.evaluate([evaluation.shifted(memory, shift)], samples)
        found = [result.kept for result in row if result is not None]
        if not found:
            raise ValueError("no validation sample could be evaluated: look at the warnings above")
        looks, mean = looks + 1, float(np.mean(found))
        progress(looks, mean)
        return mean

    search = Calibration(kept)
    wanted: dict[float | None, float] = {None: 0.0, **search.shifts(spec.budgets)}
    return {budget: (shift, search.known[shift]) for budget, shift in wanted.items()}


def _evaluated(
    asked: dict[Place, PolicySpec], samples: list[SampleRef], dispatcher, display: Display
) -> dict[Place, list[SampleResult | None]]:
    """Results of one policy at all its budgets, on the same samples."""
    (name,) = {name for name, _ in asked}
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        display.comparison(name, done, len(asked) * len(samples))

    return dict(zip(asked, dispatcher.evaluate(list(asked.values()), samples, count), strict=True))


def _records(results: dict[Place, list[SampleResult | None]], samples: int) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl`. A sample that any policy failed on is left out for all."""
    usable = [i for i in range(samples) if all(row[i] is not None for row in results.values())]
    return [
        evaluation.record(row[i], policy, budget)
        for (policy, budget), row in sorted(results.items(), key=lambda item: (item[0][0], item[0][1] or 0.0))
        for i in usable
    ]


def _timed(
    spec: EvaluateSpec, asked: dict[Place, PolicySpec], samples: list[SampleRef], dispatcher, display: Display
) -> list[dict[Place, list]]:
    """Rounds of `workers.timing.Timing` values, on one worker while the others rest; policies take turns.

    Measured once in a run's life: the seconds of another machine would not compare.
    """
    prompts = [next(ref for ref in samples if ref.task == task) for task in spec.job.kinds]
    order = list(asked)
    digest = hashlib.sha256("".join(policy_key(policy) for policy in asked.values()).encode()).hexdigest()[:16]

    def measure() -> list:
        dispatcher.quiet()
        first = dispatcher.ask("timing", PolicySpec("full"), prompts[0], DECODED)  # it pays for much else
        if first is None:  # this kind of target has no speeds
            return []
        rounds, done = [], 0
        for number in range(spec.timing):
            at = number * len(order) // spec.timing  # nobody is always first, or behind the same one
            found = {}
            for place in [*order[at:], *order[:at]]:
                found[place] = list(dispatcher.ask("timing", asked[place], prompts[number % len(prompts)], DECODED))
                done += 1
                display.timing(place[0], done, spec.timing * len(order))
            rounds.append([found[place] for place in order])
        return rounds

    if not spec.timing:
        return []
    rounds = dispatcher.journal.fact(f"timing-{spec.timing}-{digest}", measure)
    return [dict(zip(order, row, strict=True)) for row in rounds]


def _write(place: Workplace, result: dict[str, Any], drawn: list[dict[str, Any]]) -> None:
    folder = place.folder
    files.write_json(folder / "curve.json", drawn)
    files.write_json(folder / "result.json", result)
    files.write(folder / "curve.md", curve_tables.markdown(result, drawn))
    named = Path(result["namm"])
    memory = named.parent.name if named.name == "namm" else named.name  # a run's own stands in its folder
    curve.draw(drawn, folder / "curve.png", f"NAMM of {memory} and other policies on {Path(result['model']).name}")
    for name in ("curve.png", "curve.json", "curve.md", "result.json", "samples.jsonl"):
        place.tracker.artifact(folder / name)
    place.tracker.metrics_final(dict(_metrics(drawn)))


def _metrics(drawn: Iterable[dict[str, Any]]) -> Iterable[tuple[str, float]]:
    """`heldout/<policy>/<budget>/<what>`; no budget where the size is the policy's own affair."""
    for point in drawn:
        at = "" if point["budget"] is None else f"/{point['budget']:g}"
        for name in ("score", "kept", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_cache_bytes"):
            if name in point:
                yield f"heldout/{point['policy']}{at}/{name}", point[name]


def _tags(spec: EvaluateSpec) -> dict[str, str]:
    note = f"Evaluation of the NAMM {spec.namm} and other policies at several sizes on {', '.join(spec.job.kinds)}."
    return {"namm.model": spec.job.model.path, "mlflow.note.content": note}
