"""The points of the curve *score against kept fraction*, from the lines of `samples.jsonl`. Knows no files or pictures.

A level is a kept fraction at which policies are compared; one of them is the NAMM's own, at which `result.json` stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from orchestrator.report import summary as report

UNBUDGETED = ("full", "oracle")
"""Policies that are one point, whatever the level."""

Place = tuple[str, float | None]
"""A policy, and its budget: a kept fraction, or None where its size is its own affair."""


def summarised(records: Sequence[Mapping], level: float | None, own: float, extra: Mapping) -> dict[str, Any]:
    """`report.summarise` of one level. level: a budget, or None for the NAMM's own size, `own` on average."""
    memories = {r["policy"] for r in records if r["budget"] is None}
    if level is None:
        chosen = [r for r in records if r["budget"] == (None if r["policy"] in memories else own)]
    else:
        chosen = [r for r in records if r["policy"] in UNBUDGETED or r["budget"] == level]
    return report.summarise(chosen, extra)


def points(
    records: Sequence[Mapping], budgets: Sequence[float], own: float, tasks: Mapping, costs: Mapping[Place, Mapping]
) -> list[dict[str, Any]]:
    """One mapping for each policy and budget, as in `curve.json`.

    own: mean kept fraction of the NAMM as it is; tasks: `trained_tasks` and `heldout_tasks`, in order; costs: further
    fields by policy and budget. A point has policy, budget (a kept fraction; None: its own affair), level (the
    fraction at which it is compared), kept (as measured), score (mean over tasks), tasks, difference to the full cache
    and the NAMM's to it at the same level, both paired, with their 95 % intervals, and samples.
    """
    found = []
    for level in (None, *sorted(budgets)):
        for name, entry in summarised(records, level, own, tasks)["policies"].items():
            if level is not None and name in UNBUDGETED:
                continue  # they stand at the first level already
            point = {
                "policy": name,
                "budget": entry["budget"],
                "level": None if name in UNBUDGETED else own if level is None else level,
                "kept": entry["kept"],
                "score": entry["mean"],
                "tasks": entry["score"],
                "samples": entry["samples"],
            }
            fields = ("difference", "difference_interval", "namm_difference", "namm_difference_interval")
            point |= {field: entry[field] for field in fields if field in entry}
            found.append(point | dict(costs.get((name, entry["budget"]), {})))
    return found


def costs(rounds: Sequence[Mapping[Place, Sequence]]) -> dict[Place, dict[str, float]]:
    """Speed and size by policy and budget, from rounds of `workers.timing.Timing` values.

    Rates are medians over the rounds, in tokens a second; `..._ratio` is the median of what was, within a round, the
    rate over the full cache's. Bytes are the largest of all rounds.
    """
    found = {}
    for place in rounds[0] if rounds else ():
        rates = [[(t[0] / t[1], t[2] / t[3]) for t in (r[place], r["full", None])] for r in rounds]
        cost: dict[str, float] = {}
        for i, name in enumerate(("prefill", "decode")):
            cost[f"{name}_tokens_per_second"] = median(mine[i] for mine, _ in rates)
            cost[f"{name}_ratio"] = median(mine[i] / full[i] for mine, full in rates)
        largest = max((r[place] for r in rounds), key=lambda t: t[4] + t[5])
        cost["peak_cache_bytes"] = largest[4] + largest[5]
        cost["peak_kv_bytes"], cost["peak_state_bytes"] = largest[4], largest[5]
        found[place] = cost
    for cost in found.values():
        cost["peak_cache_ratio"] = cost["peak_cache_bytes"] / found["full", None]["peak_cache_bytes"]
    return found
