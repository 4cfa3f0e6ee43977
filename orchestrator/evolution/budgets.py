"""Sizes of memories that take a budget: which sample has which, the same for all candidates, and how that is asked.

Knows nothing of results, searches or workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.protocols import Evaluate, EvaluateGroups, Group, Results
from orchestrator.search.stage_rules import StagePlan
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef

Budgets = Mapping[SampleRef, float]
"""The kept fraction that each sample is answered with."""


def training_budgets(spec: JobSpec, generation: int, stage: StagePlan, samples: Sequence[SampleRef]) -> Budgets:
    """A budget for each of a generation's samples; empty where the memory takes none. generation: counted from 0 over
    all stages.

    A task's samples of one generation after the other take the budgets in turn, so that each comes equally often;
    another task begins with another one, and so does the next round, since racing looks at a task's first samples
    first.
    """
    return _in_turn(spec, samples, generation * stage.samples)


def validation_budgets(spec: JobSpec, samples: Sequence[SampleRef]) -> Budgets:
    """A budget for each validation sample, the same at every look; empty where the memory takes none."""
    return _in_turn(spec, samples, 0)


@dataclass(frozen=True)
class AtBudgets:
    """An `Evaluate` that gives every memory the budget of the sample that it is evaluated on, and leaves other policies
    as they are. Samples of one budget are a group, and all groups are asked for at once."""

    together: EvaluateGroups
    budgets: Budgets

    def __call__(
        self,
        policies: list[PolicySpec],
        samples: list[SampleRef],
        progress: Callable[[int], None] = lambda count: None,
    ) -> Results:
        """See `Evaluate`. Every sample must have a budget."""
        places: dict[float, list[int]] = {}
        for place, ref in enumerate(samples):
            places.setdefault(self.budgets[ref], []).append(place)
        groups = [
            ([at_budget(policy, budget) for policy in policies], [samples[place] for place in at])
            for budget, at in places.items()
        ]
        results: Results = [[None] * len(samples) for _ in policies]
        for at, found in zip(places.values(), self.together(groups, progress), strict=True):
            for row, part in zip(results, found, strict=True):
                for place, result in zip(at, part, strict=True):
                    row[place] = result
        return results


def at_budget(policy: PolicySpec, budget: float | None) -> PolicySpec:
    """A memory with this budget; any other policy as it is."""
    return dataclasses.replace(policy, budget=budget) if policy.name == "namm" else policy


def one_after_another(evaluate: Evaluate) -> EvaluateGroups:
    """Groups where there is no way to ask for them at once."""

    def groups_of(groups: Sequence[Group], progress: Callable[[int], None] = lambda count: None) -> list[Results]:
        return [evaluate(policies, samples, progress) for policies, samples in groups]

    return groups_of


def _in_turn(spec: JobSpec, samples: Sequence[SampleRef], first: int) -> Budgets:
    """Budgets in turn within each task, whose samples stand in order; first: how many of each came before."""
    budgets = spec.fitness.budgets
    if budgets is None:
        return {}
    seen: dict[str, int] = {}
    found = {}
    for ref in samples:
        number = seen.setdefault(ref.task, first)
        seen[ref.task] += 1
        rounds = number // len(budgets)
        found[ref] = budgets[(number + rounds + spec.train.index(ref.task)) % len(budgets)]
    return found
