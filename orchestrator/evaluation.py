"""The final comparison: every policy on held-out samples that chose nothing, baselines at the NAMM's own size.

Knows nothing of searches, files or pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from orchestrator.evolution import Evaluate
from workers.unit import PolicySpec, SampleRef

UNBUDGETED = ("full", "namm", "oracle")
"""Policies whose size is their own affair."""


def held_out_samples(kinds: tuple[str, ...], total: int) -> list[SampleRef]:
    """`total` held-out samples, shared as evenly as can be among the kinds."""
    return [
        SampleRef(kind, "heldout", i) for n, kind in enumerate(kinds) for i in range(len(range(n, total, len(kinds))))
    ]


def fit_size(
    evaluate: Evaluate, namm: PolicySpec, samples: list[SampleRef], kept_at_most: float, halvings: int = 4
) -> tuple[PolicySpec, dict[str, float]]:
    """Shifts the threshold of a NAMM (its b3, the last number of theta) until it keeps `kept_at_most` of `samples`.

    One shift for all layers, heads and samples, found by bisection on samples that are not held out; a NAMM that is
    small enough stays as it is. Returns the NAMM, and what was found: shift, kept fraction and score.
    """

    def shifted(shift: float) -> tuple[PolicySpec, dict[str, float]]:
        theta = namm.theta.copy()
        theta[-1] -= shift
        spec = dataclasses.replace(namm, theta=theta)
        results = [r for r in evaluate([spec], samples)[0] if r is not None]
        kept, score = (float(np.mean([getattr(r, name) for r in results])) for name in ("kept", "score"))
        return spec, {"shift": shift, "kept": kept, "score": score}

    small = shifted(0.0)
    if small[1]["kept"] <= kept_at_most:
        return small
    low, high = 0.0, 0.02
    while (small := shifted(high))[1]["kept"] > kept_at_most:
        low, high = high, 2 * high
    for _ in range(halvings):
        middle = (low + high) / 2
        tried = shifted(middle)
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
            result = dataclasses.asdict(row[i])
            result["sample"] = result.pop("index")
            records.append({**result, "policy": name, "budget": spec.budget})
    return records
