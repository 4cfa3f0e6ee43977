"""The points of the curve *score against kept fraction*, from the lines of `samples.jsonl`. Knows no files or pictures.

A level is a kept fraction at which policies are compared; one of them is the NAMM's own, at which `result.json` stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.evaluation.held_out import OperatingPoint
from orchestrator.report.summary import summarise

COMPARED = ("difference", "difference_interval", "namm_difference", "namm_difference_interval", "groups")
"""Fields that a point has from `orchestrator.report.summary`, where they exist."""


@dataclass(frozen=True)
class Curve:
    """What was measured at all sizes, and which sizes these are."""

    records: Sequence[Mapping[str, Any]]
    """Lines of `samples.jsonl`."""
    memories: Collection[str]
    """Labels of the NAMMs that have their own size (budget None) and the budgets."""
    single: Collection[str]
    """Labels of the policies that stand at one size, whatever the level."""
    budgets: Sequence[float]
    """Kept fractions at which the others are compared, besides `own`."""
    own: float
    """The first level: mean kept fraction of the NAMM as it is, or the size that was asked for in its place."""
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is said of a policy besides its numbers, by its label: `over`, `protocol`, and `settings` if chosen."""

    def summary(self, extra: Mapping[str, Any], level: float | None = None) -> dict[str, Any]:
        """What `result.json` holds, at one level; None is the NAMM's own size."""

        def wanted(policy: str) -> float | None:
            return self.own if level is None and policy not in self.memories else level

        records = [r for r in self.records if r["policy"] in self.single or r["budget"] == wanted(r["policy"])]
        summary = summarise(records, extra)
        for policy, entry in summary["policies"].items():
            entry |= self.facts.get(policy, {})
        return summary

    def points(
        self, tasks: Mapping[str, Any], further: Mapping[OperatingPoint, Mapping[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """What `curve.json` holds: one mapping for each policy and budget.

        tasks: `trained_tasks` and `heldout_tasks`, in order; further: more fields of some points. A point has policy,
        budget (a kept fraction; None: the policy's own size), level (the fraction at which it is compared; None: any),
        kept (as measured), score (mean over tasks), tasks, difference to the full cache and the NAMM's to it at the
        same level, both paired, with their 95 % intervals, samples, the same for trained and unseen kinds apart
        (`groups`), and what `facts` says of it.
        """
        for level in (None, *sorted(self.budgets)):
            for policy, entry in self.summary(tasks, level)["policies"].items():
                alone = policy in self.single
                if alone and level is not None:
                    continue  # it stands at the first level already
                yield {
                    "policy": policy,
                    "budget": entry["budget"],
                    "level": None if alone else self.own if level is None else level,
                    "kept": entry["kept"],
                    "score": entry["mean"],
                    "tasks": entry["score"],
                    "samples": entry["samples"],
                    **{name: entry[name] for name in COMPARED if name in entry},
                    **self.facts.get(policy, {}),
                    **further.get(OperatingPoint(policy, entry["budget"]), {}),
                }
