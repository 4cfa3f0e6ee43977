"""Which samples a job asks for: of its statistics, of each generation, of its validation looks. Knows no results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from orchestrator.search.stage_rules import StagePlan
from orchestrator.spec import JobSpec
from workers.unit import SampleRef

STATISTICS_SAMPLES = 1_000
"""The first training samples of each task are for the feature statistics; generations take those that follow."""

Size = Callable[[str, str], int | None]
"""Samples in a task's split; None: as many as are asked for."""


def endless(task: str, split: str) -> None:
    """A `Size` of tasks that make their samples."""
    return None


def statistics_samples(spec: JobSpec, size: Size = endless) -> list[SampleRef]:
    """Training prompts of the first stage's tasks: the statistics stay as they are in the stages that follow."""
    return _first(spec.plan[0].train, "train", spec.fitness.statistics_samples, size)


def validation_samples(spec: JobSpec, tasks: tuple[str, ...] | None = None, size: Size = endless) -> list[SampleRef]:
    """The fixed samples by which the vector to deploy is chosen; tasks: None for all that are trained."""
    return _first(tasks or spec.train, "validation", spec.validation.samples, size)


def training_samples(
    spec: JobSpec, generation: int, stage: StagePlan | None = None, size: Size = endless
) -> list[SampleRef]:
    """A generation's samples, the same for all its candidates; generation: counted from 0 over all stages; stage: of
    `spec.plan`, None for the first one.

    Where a split is large enough nothing is seen twice in a run; from a smaller one each generation draws at random,
    without replacement.
    """
    plan = spec.plan
    stage = stage or plan[0]
    most = max(s.samples for s in plan)
    first = STATISTICS_SAMPLES + (spec.seed * 100_000 + generation) * most
    end = STATISTICS_SAMPLES + (spec.seed * 100_000 + sum(s.generations for s in plan)) * most
    refs = []
    for task in stage.train:
        there = size(task, "train")
        if there is None or there >= end:
            indices = range(first, first + stage.samples)
        else:
            seed = int(hashlib.sha256(f"{spec.seed} {generation} {task}".encode()).hexdigest()[:8], 16)
            drawn = np.random.RandomState(seed).permutation(there)  # not a Generator: this stream is frozen (NEP 19)
            indices = drawn[: stage.samples].tolist()
        refs += [SampleRef(task, "train", i) for i in indices]
    return refs


def _first(tasks: tuple[str, ...], split: str, count: int, size: Size) -> list[SampleRef]:
    refs = []
    for task in tasks:
        there = size(task, split)
        refs += [SampleRef(task, split, i) for i in range(count if there is None else min(count, there))]
    return refs
