"""The final comparison: every policy on held-out samples that chose nothing, baselines at the NAMM's own size.

Knows nothing of searches, files or pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from orchestrator.protocols import Evaluate
from workers.unit import PolicySpec, SampleRef, SampleResult

UNBUDGETED = ("full", "namm", "oracle")
"""Policies whose size is their own affair."""


def held_out_samples(kinds: tuple[str, ...], total: int, split: str = "heldout") -> list[SampleRef]:
    """`total` samples of a split, held out unless another is named, shared as evenly as can be among the kinds."""
    return [SampleRef(kind, split, i) for n, kind in enumerate(kinds) for i in range(len(range(n, total, len(kinds))))]


def shifted(namm: PolicySpec, shift: float) -> PolicySpec:
    """The NAMM with its threshold raised by `shift`, and nothing else changed.

    The last number of theta is the bias of the score (b3 of BAM), so that lowering it raises the threshold.
    """
    theta = namm.theta.copy()
    theta[-1] -= shift
    return dataclasses.replace(namm, theta=theta)


def fit_size(
    evaluate: Evaluate, namm: PolicySpec, samples: list[SampleRef], kept_at_most: float, halvings: int = 4
) -> tuple[PolicySpec, dict[str, float]]:
    """Shifts the threshold of a NAMM (its b3, the last number of theta) until it keeps `kept_at_most` of `samples`.

    One shift for all layers, heads and samples, found by bisection on samples that are not held out; a NAMM that is
    small enough stays as it is. Returns the NAMM, and what was found: shift, kept fraction and score.
    """

    def tried_at(shift: float) -> tuple[PolicySpec, dict[str, float]]:
        spec = shifted(namm, shift)
        results = [r for r in evaluate([spec], samples)[0] if r is not None]
        kept, score = (float(np.mean([getattr(r, name) for r in results])) for name in ("kept", "score"))
        return spec, {"shift": shift, "kept": kept, "score": score}

    small = tried_at(0.0)
    if small[1]["kept"] <= kept_at_most:
        return small
    low, high = 0.0, 0.02
    while (small := tried_at(high))[1]["kept"] > kept_at_most:
        low, high = high, 2 * high
    for _ in range(halvings):
        middle = (low + high) / 2
        tried = tried_at(middle)
        if tried[1]["kept"] <= kept_at_most:
            small, high = tried, middle
        else:
            low = middle
    return small


def compare(
    evaluate: Evaluate,
    namm: PolicySpec,
    policies: tuple[str, ...],
    samples: list[SampleRef],
    progress: Callable[[str, int, int], None] = lambda policy, done, of: None,
) -> list[dict[str, Any]]:
    """One record for each policy and sample (the lines of `samples.jsonl`).

    Baselines get the NAMM's mean kept fraction on the same samples as their budget. Samples that any policy
    failed on are left out for all. progress: gets (policy, results so far, results wanted).
    """
    table, budget = {}, None
    for name in ["namm", *(p for p in policies if p != "namm")]:
        spec = namm if name == "namm" else PolicySpec(name, budget=None if name in UNBUDGETED else budget)
        done = 0

        def count(more: int, name: str = name) -> None:
            nonlocal done
            done += more
            progress(name, done, len(samples))

        table[name] = (spec, evaluate([spec], samples, count)[0])
        if name == "namm":
            budget = round(float(np.mean([r.kept for r in table[name][1] if r is not None])), 4)
    usable = [i for i in range(len(samples)) if all(row[i] is not None for _, row in table.values())]
    records = []
    for name in policies:
        spec, row = table[name]
        for i in usable:
            records.append(record(row[i], name, spec.budget))
    return records


def record(result: SampleResult, policy: str, budget: float | None) -> dict[str, Any]:
    """A line of `samples.jsonl`."""
    line = dataclasses.asdict(result)
    line["sample"] = line.pop("index")
    return {**line, "policy": policy, "budget": budget}
