"""What stands before a stage: the rule that the search starts from, and the vectors that what is found must beat.

A job that starts from a rule looks at vectors on a stage's validation samples before its first generation, and the
best of them is deployed unless a look at the search finds a better one. Knows no search state, workers or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.evolution.look import looked_at
from orchestrator.protocols import Evaluate
from orchestrator.search.stage_rules import StagePlan
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef

LATER = 4
"""Policies of the look before a later stage, at most: start, best and mean so far, and the full cache."""


def given(spec: JobSpec) -> dict[str, np.ndarray]:
    """What `start.theta` says, (N,) float64, under the name that it has among the rules; empty where it is None."""
    return {} if spec.start.theta is None else {"given": np.array(spec.start.theta, np.float64)}


@dataclass(frozen=True)
class Before:
    """A vector that a stage's search must beat."""

    memory: PolicySpec
    generation: int
    """Generations told when it was found."""


def look_before(
    spec: JobSpec,
    stage: StagePlan,
    evaluate: Evaluate,
    vectors: Mapping[str, Before],
    samples: list[SampleRef],
) -> dict[str, Any]:
    """What validation samples say of vectors before a stage, plain JSON values; the best one is `validation_of`.

    Raises ValueError where none has a finite fitness.
    """
    found = looked_at(spec, stage, evaluate, {name: one.memory for name, one in vectors.items()}, samples)
    if not found:
        raise ValueError(
            f"start.rule {spec.start.rule}: no validation sample gives a finite fitness, so that there is nothing to "
            "compare with; try model.dtype=float32 or other tasks, under another name"
        )
    return found


def distinct(vectors: Mapping[str, Before]) -> dict[str, Before]:
    """Those of the vectors that no earlier one equals to the bit."""
    kept: dict[bytes, str] = {}
    for name, one in vectors.items():
        kept.setdefault(np.asarray(one.memory.theta, np.float32).tobytes(), name)
    return {name: vectors[name] for name in kept.values()}


def of_rules(look: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's result says of its start, from the look at the rules: which one, and how all of them did."""
    chosen = look["validation_of"]
    figures = ("fitness", "score", "kept")
    looks = look["validation_looks"]
    return {
        "rule": chosen,
        **{f"validation_{name}": looks[chosen][name] for name in figures},
        "validation_full": look["validation_full"],
        "rules": {rule: {name: looks[rule][name] for name in figures} for rule in looks},
    }
