"""One evaluation: policies x budgets x tasks on held-out samples, from what was asked for to the run folder.

Knows only the order of the steps. What is asked for is in `curve_spec`; sizes are found by `sizes`, settings chosen by
`settings`, points computed by `points`, speeds measured by `speeds`; the picture is in `curve_picture`, the tables are
in `curve_tables`; what an evaluation needs is started by `session`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator import session
from orchestrator.evaluation import curve_picture, curve_tables, settings, speeds
from orchestrator.evaluation.calibration import TOLERANCE
from orchestrator.evaluation.curve_spec import ANEW, EvaluateSpec, checked
from orchestrator.evaluation.held_out import (
    OperatingPoint,
    Row,
    at_size,
    evaluated,
    facts,
    metric_name,
    own_size,
    records,
    takes_budget,
)
from orchestrator.evaluation.points import Curve
from orchestrator.evaluation.sizes import Sized, Sizing
from orchestrator.policy_entries import PolicyEntry
from orchestrator.report.progress import Display
from orchestrator.session import Workplace
from orchestrator.storage import files
from orchestrator.storage.journal import policy_key
from orchestrator.storage.run_folder import EVALUATION
from orchestrator.tracking.ties import NOTE, ties
from workers.unit import PolicySpec

Points = list[dict[str, Any]]
"""What `curve.json` holds."""
MEASURED = ("score", "kept", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_cache_bytes")
"""Fields of a point that MLflow gets."""


def run(spec: EvaluateSpec, resume: bool, display: Display) -> tuple[dict[str, Any], Points]:
    """Runs an evaluation to its end, or continues one; returns what `result.json` and `curve.json` hold.

    Raises ValueError, one line, for bad input, before anything is written.
    """
    spec, memories = checked(spec)
    purpose = "evaluate-" + "".join(f"{policy_key(memory)}-" for memory in memories.values())
    with session.opened(spec.job, resume, display, (EVALUATION, spec), _tags(spec), purpose) as workplace:
        for name, value in ties(spec.namm, workplace.tracker.uri).items():
            workplace.tracker.tag(name, value)
        return _Evaluation(spec, memories, workplace, display).run()


class _Evaluation:
    """An evaluation under way: what was asked of which policies, and what came of it."""

    def __init__(
        self, spec: EvaluateSpec, memories: dict[str, PolicySpec], workplace: Workplace, display: Display
    ) -> None:
        self.spec, self.memories, self.workplace, self.display = spec, memories, workplace, display
        self.dispatcher, self.samples = workplace.dispatcher, spec.held_out
        self.protocol = spec.job.evaluation.protocol
        self.asked: dict[OperatingPoint, PolicySpec] = {}
        self.results: dict[OperatingPoint, Row] = {}
        self.single: set[str] = set()
        """Labels of the policies that stand at one size."""
        self.shifts: dict[OperatingPoint, dict[str, float]] = {}
        """How each NAMM was brought to each size."""
        self.facts: dict[str, dict[str, Any]] = {}
        """What results say of each policy besides its numbers, by its label, in the order of the policies."""

    def run(self) -> tuple[dict[str, Any], Points]:
        """Runs every step, in order."""
        started, spec = time.monotonic(), self.spec
        sizing = [] if spec.by_budget else spec.sizing
        session.prepare(self.dispatcher, [*self.samples, *sizing], self.display)
        if any(policy.name == ANEW for policy in spec.policies):
            anew = session.statistics(spec.job, self.dispatcher, self.display)
            self.memories = {**self.memories, ANEW: dataclasses.replace(self.memories["namm"], statistics=anew)}
        self._ask_memories()
        self._evaluate("namm")
        own = self._own()
        policies = self._chosen(own)
        self._ask_others(policies, own)
        for policy in policies:
            if policy.label != "namm":
                self._evaluate(policy.label)
        by_label = dict(sorted(self.asked.items(), key=lambda item: (item[0].policy, item[0].budget or 0.0)))
        lines = records(by_label, self.results)
        files.write_lines(self.workplace.folder / "samples.jsonl", lines)
        own_sized = self.memories if spec.reference is None else ()
        budgets = [budget for budget in spec.budgets if budget != own]
        curve = Curve(lines, own_sized, self.single, budgets, own, self.facts)
        costs = speeds.compared(self._timed())
        further = {point: {**costs.get(point, {}), **self.shifts.get(point, {})} for point in self.asked}
        tasks = {"trained_tasks": list(spec.job.train), "heldout_tasks": list(spec.job.heldout)}
        points = list(curve.points(tasks, further))
        result = curve.summary({**self._about(own), **tasks, "seconds": time.monotonic() - started})
        _write(self.workplace, result, points)
        return result, points

    def _ask_memories(self) -> None:
        """Asks for each NAMM as it is, and brought to each budget; or at each budget alone where a size is wanted."""
        wanted = sorted({*self.spec.budgets, *([] if self.spec.reference is None else [self.spec.reference])})
        for label, memory in self.memories.items():
            if self.spec.by_budget:
                self.asked |= {OperatingPoint(label, b): dataclasses.replace(memory, budget=b) for b in wanted}
                continue

            def looked(looks: int, kept: float, label: str = label) -> None:
                self.display.sizing(label, looks, kept)

            sizing = Sizing(self.dispatcher.evaluate, memory, self.spec.sizing, looked)
            sizes: list[tuple[float | None, Sized]] = []
            if self.spec.reference is None:
                sizes.append((None, sizing.as_it_is()))
            for budget, sized in [*sizes, *sizing.at_each(wanted).items()]:
                point = OperatingPoint(label, budget)
                self.asked[point] = sized.memory
                self.shifts[point] = {"shift": sized.shift, "validation_kept": sized.kept}
                if budget is not None and abs(sized.kept - budget) > TOLERANCE:
                    self.display.warning(f"{label} cannot be brought to {budget:g}: {sized.kept:.3f} is the nearest")

    def _own(self) -> float:
        """The kept fraction at which `result.json` stands."""
        if self.spec.reference is not None:
            return self.spec.reference
        own = own_size(self.results[OperatingPoint("namm", None)])
        while own in self.spec.budgets:  # it must be a level of its own, however near another one
            own = round(own + 1e-4, 4)
        return own

    def _chosen(self, own: float) -> list[PolicyEntry]:
        """The policies with nothing left open, each once; notes what is to be said of each."""
        tuning, found = self.spec.tuned(own), dict[str, PolicyEntry]()
        if any(policy.best for policy in self.spec.policies):
            session.prepare(self.dispatcher, tuning.rounds[-1], self.display)
        for policy in self.spec.policies:
            how: dict[str, Any] = {}
            if policy.best:
                policy, record = settings.chosen(self.dispatcher.evaluate, policy, tuning, self.display.tuning)
                how = {"settings": record}
            found[policy.label] = policy  # a row may be there already, as it was asked for
            known = self.facts.get(policy.label, facts(policy, self.spec.job.memory, self.protocol))
            self.facts[policy.label] = {**known, **how}
        return list(found.values())

    def _ask_others(self, policies: Sequence[PolicyEntry], own: float) -> None:
        """Asks for the other policies at each budget and at the NAMM's own size, or once if their size is fixed."""
        for policy in policies:
            if policy.name not in self.memories:
                points = dict(at_size(policy, budget, self.protocol) for budget in sorted({*self.spec.budgets, own}))
                if policy.budget is not None or not takes_budget(policy.name):
                    self.single.add(policy.label)
                self.asked |= points

    def _evaluate(self, label: str) -> None:
        """Evaluates one policy at all of its sizes."""
        mine = {point: policy for point, policy in self.asked.items() if point.policy == label}
        self.results |= evaluated(self.dispatcher.evaluate, mine, self.samples, self.display.comparison)

    def _timed(self) -> list[speeds.Round]:
        """Measured speeds, which a run measures once: seconds on another machine could not be compared."""
        rounds = self.spec.timing
        if not rounds:
            return []
        prompts = [next(ref for ref in self.samples if ref.task == task) for task in self.spec.job.kinds]
        digest = hashlib.sha256("".join(policy_key(policy) for policy in self.asked.values()).encode()).hexdigest()[:16]

        def measure() -> list[list[list[float]]]:
            self.dispatcher.quiet()
            return speeds.measured(self.dispatcher.ask, self.asked, prompts, rounds, self.display.timing)

        found = self.dispatcher.journal.fact(f"timing-{rounds}-{digest}", measure)
        return [dict(zip(self.asked, times, strict=True)) for times in found]

    def _about(self, own: float) -> dict[str, Any]:
        """What `result.json` says in addition to the scores."""
        journal = self.dispatcher.journal
        return {
            "name": self.spec.job.name,
            "seed": self.spec.job.seed,
            "generations": 0,
            "namm": self.spec.namm,
            "model": self.spec.job.model.path,
            "protocol": self.protocol,
            "own_kept": own,
            "reference_size": self.spec.reference,
            "timing": {"rounds": self.spec.timing, "decoded": speeds.DECODED},
            "evaluations": len(journal),
            "quarantined": sorted(map(list, journal.quarantined)),
        }


def _write(workplace: Workplace, result: dict[str, Any], points: Points) -> None:
    folder = workplace.folder
    files.write_json(folder / "curve.json", points)
    files.write_json(folder / "result.json", result)
    files.write(folder / "curve.md", curve_tables.markdown(result, points))
    source = Path(result["namm"])
    memory = source.parent.name if source.name == "namm" else source.name  # a run's own stands in its folder
    title = f"NAMM of {memory} and other policies on {Path(result['model']).name}"
    curve_picture.draw(points, folder / "curve.png", title)
    for name in ("curve.png", "curve.json", "curve.md", "result.json", "samples.jsonl"):
        workplace.tracker.artifact(folder / name)
    workplace.tracker.metrics_final(dict(_metrics(points)))
    workplace.tracker.tag(NOTE, curve_tables.markdown(result, points))


def _metrics(points: Points) -> Iterator[tuple[str, float]]:
    """`heldout/<policy>/<budget>/<what>`; no budget where the size is up to the policy."""
    for point in points:
        at = "" if point["budget"] is None else f"/{point['budget']:g}"
        for name in MEASURED:
            if name in point:
                yield f"heldout/{metric_name(point['policy'])}{at}/{name}", point[name]


def _tags(spec: EvaluateSpec) -> dict[str, str]:
    note = f"Evaluation of the NAMM {spec.namm} and other policies at several sizes on {', '.join(spec.job.kinds)}."
    return {"namm.model": spec.job.model.path, "namm.kind": "evaluation", NOTE: note}
