"""What an evaluation is asked for: policies x budgets x tasks, with one NAMM on one model. Runs nothing.

Reading and checking it starts nothing and writes nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from namm_core.config import NammConfig
from orchestrator import session
from orchestrator.evaluation import settings
from orchestrator.evaluation.held_out import check_policies, held_out_samples, memory_takes_budget
from orchestrator.evaluation.settings import Tuning
from orchestrator.policy_entries import PolicyEntry
from orchestrator.spec import JobSpec
from workers.unit import PolicySpec, SampleRef

ANEW = "namm-statistics-anew"
"""The NAMM with feature statistics of the model that it is evaluated on."""
BUDGETS = (0.1, 0.2, 0.3, 0.5, 0.75)
REFERENCE = 0.3
"""Kept fraction of the main table for a NAMM that takes a budget, where the job names none (`evaluation.budget`)."""


@dataclass(frozen=True)
class EvaluateSpec:
    """One evaluation."""

    job: JobSpec
    """Model, tasks and workers; its name is the evaluation's, its memory the NAMM's."""
    namm: str
    """Folder of a saved NAMM, or a repository of the Hub."""
    policies: tuple[PolicyEntry, ...]
    """What is compared; `full` and `namm` are always among them."""
    budgets: tuple[float, ...] = BUDGETS
    """Kept fractions at which policies are compared, in addition to the NAMM's own."""
    samples: int = 200
    """Held-out samples, over all kinds."""
    validation: int = 36
    """Validation samples, over all kinds, on which the NAMM's threshold is brought to each budget."""
    timing: int = 5
    """Rounds in which speeds are measured; 0: none."""
    size: float | None = None
    """Kept fraction at which `result.json` stands, and nothing is compared at the NAMM's own; None: at the NAMM's own,
    or at `evaluation.budget` for one that takes a budget and has none."""
    tuning: int = 24
    """Validation samples, over all kinds, on which the settings of policies with `best` are chosen."""
    tuning_budgets: tuple[float, ...] = ()
    """Kept fractions at which these settings are tried; none: all that policies are compared at but the NAMM's own."""
    others: dict[str, str] = field(default_factory=dict)
    """More NAMMs of the same configuration: folders or Hub ids, by the name `namm-...` that they have in tables."""

    def __post_init__(self) -> None:
        size = () if self.size is None else (self.size,)
        for name, budgets in {"budgets": self.budgets, "tuning_budgets": self.tuning_budgets, "size": size}.items():
            for budget in budgets:
                if not 0.0 < budget < 1.0:
                    raise ValueError(f"{name}: kept fractions lie between 0 and 1, not {budget:g}")
        for name in self.others:
            if not name.startswith("namm-") or name == ANEW:
                raise ValueError(f"a further NAMM is called namm-..., and not {ANEW}: {name!r}")
        labels = [policy.label for policy in self.policies]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"policies names {twice} twice")
        for name, least in (("samples", len(self.job.kinds)), ("validation", 1), ("tuning", 1), ("timing", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    @property
    def held_out(self) -> list[SampleRef]:
        """The samples that everything is measured on."""
        return held_out_samples(self.job.kinds, self.samples)

    @property
    def sizing(self) -> list[SampleRef]:
        """The validation samples on which sizes are found."""
        return held_out_samples(self.job.kinds, self.validation, "validation")

    @property
    def by_budget(self) -> bool:
        """Whether the NAMM takes a budget, so that there is no threshold to be shifted."""
        return memory_takes_budget(self.job.memory)

    @property
    def reference(self) -> float | None:
        """Kept fraction at which `result.json` stands; None: the NAMM's own."""
        if self.size is None and self.by_budget:
            return self.job.evaluation.budget or REFERENCE
        return self.size

    def tuned(self, own: float) -> Tuning:
        """On what settings are chosen; own: the level at which `result.json` stands."""
        reference = () if self.reference is None else (self.reference,)
        sizes = self.tuning_budgets or (*self.budgets, *reference) or (own,)
        return Tuning(self.job.kinds, self.tuning, tuple(sorted(set(sizes))), self.job.evaluation.protocol)


def known_policies() -> tuple[str, ...]:
    """Every policy that has a file, and the NAMM."""
    from namm_core import policies

    return ("full", "namm", *(name for name in policies.names() if name != "full"))


def at_best(policies: tuple[PolicyEntry, ...], memories: tuple[str, ...] = ()) -> tuple[PolicyEntry, ...]:
    """The entries with their open options to be chosen, wherever there is a choice. Raises ValueError, one line."""
    names = ("namm", ANEW, *memories)
    return tuple(entry if entry.name in names else settings.at_best(entry) for entry in policies)


def checked(spec: EvaluateSpec) -> tuple[EvaluateSpec, dict[str, PolicySpec]]:
    """The evaluation with nothing left open, and its NAMMs by name, without `ANEW`.

    Raises ValueError, one line, for bad input.
    """
    for policy in spec.policies:
        if policy.name not in (*known_policies(), ANEW, *spec.others):
            raise ValueError(f"unknown policy {policy.name!r}; known: {', '.join((*known_policies(), ANEW))}")
    check_policies(spec.policies, ("namm", ANEW, *spec.others))
    config, memory = _saved(spec.namm)
    memories = {"namm": memory}
    for name, source in spec.others.items():
        other, memories[name] = _saved(source)
        if other != config:
            raise ValueError(f"{source} has another configuration than {spec.namm}: evaluate it on its own")
    names = [policy.name for policy in spec.policies]
    samples = {"samples": spec.held_out, "validation": spec.sizing}
    if any(policy.best for policy in spec.policies):
        samples["tuning"] = spec.tuned(0.5).rounds[-1]
    job = session.checked(_with_memory(spec.job, config), names, samples)
    always = [PolicyEntry(name) for name in ("full", "namm")]
    by_label = {policy.label: policy for policy in (*always, *spec.policies, *map(PolicyEntry, spec.others))}
    protocol = spec.job.evaluation.protocol
    memories = {name: dataclasses.replace(found, protocol=protocol) for name, found in memories.items()}
    policies, budgets = tuple(by_label.values()), tuple(sorted(set(spec.budgets)))
    return dataclasses.replace(spec, job=job, policies=policies, budgets=budgets), memories


def _with_memory(job: JobSpec, memory: NammConfig) -> JobSpec:
    """The job with another memory than it was written for, and without what it says of how one is evolved: that may
    be for thresholds where the memory has a budget, or the other way round."""
    budget = job.evaluation.budget if memory_takes_budget(memory) else None
    return dataclasses.replace(
        job,
        memory=memory,
        storage=None,
        start=type(job.start)(),
        fitness=type(job.fitness)(statistics_samples=job.fitness.statistics_samples),
        evaluation=dataclasses.replace(job.evaluation, kept_at_most=1.0, budget=budget),
    )


def _saved(source: str) -> tuple[NammConfig, PolicySpec]:
    """The one NAMM of a folder or a Hub repository. Raises ValueError."""
    from namm_core import Namm

    saved = Namm.from_pretrained(source)
    if saved.theta.ndim != 1:
        raise ValueError(f"{source} holds {len(saved.theta)} candidates: save one of them, Namm(config, theta[i])")
    given = saved.statistics
    statistics = None if given is None else (given.mean.numpy(), given.var.numpy(), given.count)
    return saved.config, PolicySpec("namm", theta=saved.theta.numpy(), statistics=statistics)
