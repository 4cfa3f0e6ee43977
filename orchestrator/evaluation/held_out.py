"""The comparison on held-out samples, which chose nothing: every policy on the same ones, baselines at the NAMM's size.

Knows nothing of searches, files or pictures.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from namm_core.config import NammConfig
from orchestrator.policy_entries import PolicyEntry
from orchestrator.protocols import Evaluate
from workers.unit import PolicySpec, ProtocolName, SampleRef, SampleResult

Row = list[SampleResult | None]
"""A policy's results, one a sample; None where the sample could not be evaluated."""
Progress = Callable[[str, int, int], None]
"""Gets a policy's label, its results so far, and the results wanted."""


class OperatingPoint(NamedTuple):
    """A policy at one size: what a row of `samples.jsonl` belongs to."""

    policy: str
    """Its label, such as `namm` or `snapkv(window=64)`."""
    budget: float | None
    """Kept fraction that it was given; None where its size is up to the policy."""


def held_out_samples(kinds: tuple[str, ...], total: int, split: str = "heldout") -> list[SampleRef]:
    """`total` samples of a split, held out unless another is named, shared as evenly as can be among the kinds."""
    return [SampleRef(kind, split, i) for n, kind in enumerate(kinds) for i in range(len(range(n, total, len(kinds))))]


def check_policies(entries: Sequence[PolicyEntry], memories: Collection[str] = ("namm",)) -> None:
    """Raises ValueError, one line, for a policy or an option that does not exist, or a budget that is not taken.

    memories: names of NAMMs, which are no policies with a file.
    """
    from namm_core import policies  # a policy's class imports torch

    for entry in entries:
        if entry.name not in memories:
            policies.check(entry.name, entry.options, entry.budget)
            if entry.best and len(policies.settings(entry.name)) < 2:
                raise ValueError(f"policy {entry.name} has no settings to choose among: leave best out")
            for setting in policies.settings(entry.name) if entry.best else ():
                policies.check(entry.name, {**setting, **entry.options}, entry.budget)
        elif entry.options or entry.budget is not None or entry.best:
            raise ValueError(f"policy {entry.name} takes no options and no budget: it is the memory as it is saved")


def takes_budget(name: str) -> bool:
    """Whether a policy keeps a size that it is given. Raises ValueError, one line, for an unknown name."""
    from namm_core import policies  # a policy's class imports torch

    return policies.named(name).takes_budget


def memory_takes_budget(config: NammConfig) -> bool:
    """Whether a memory of this configuration keeps a size that it is given, rather than what lies above a threshold."""
    return config.selection == "budget"


def facts(entry: PolicyEntry, config: NammConfig, protocol: ProtocolName) -> dict[str, Any]:
    """What results say of a policy besides its numbers.

    over: whom its budget is shared by (`namm_core.selection.Over`; None where it takes none); protocol: when it forgot.
    config: of the NAMM, for its entries.
    """
    from namm_core import policies

    over = None
    if entry.name not in policies.names():
        over = config.over if memory_takes_budget(config) else None
    elif takes_budget(entry.name):
        option = policies.options(entry.name).get("over")
        over = entry.options.get("over", "head" if option is None else option.default)
    return {"over": over, "protocol": protocol}


def compare(
    evaluate: Evaluate,
    namm: PolicySpec,
    policies: Sequence[PolicyEntry],
    samples: list[SampleRef],
    progress: Progress = lambda policy, done, of: None,
) -> list[dict[str, Any]]:
    """One record for each policy and sample (the lines of `samples.jsonl`).

    Policies that take a budget, and are given none, get the NAMM's, or its mean kept fraction on the same samples where
    it has none; all forget by the NAMM's protocol. Samples that any policy failed on are left out for all.
    """
    memory = OperatingPoint("namm", namm.budget)
    results = evaluated(evaluate, {memory: namm}, samples, progress)
    own = own_size(results[memory]) if namm.budget is None else namm.budget
    asked = {}
    for entry in policies:
        point, spec = (memory, namm) if entry.name == "namm" else at_size(entry, own, namm.protocol)
        asked[point] = spec
        if point not in results:
            results |= evaluated(evaluate, {point: spec}, samples, progress)
    return records(asked, results)


def at_size(entry: PolicyEntry, size: float, protocol: ProtocolName = "streaming") -> tuple[OperatingPoint, PolicySpec]:
    """A policy at its own size, at the one that it is fixed to, or else at `size`; raises ValueError as
    `takes_budget`. protocol: when it forgets; the full cache is the same in all."""
    budget = entry.budget if entry.budget is not None else size if takes_budget(entry.name) else None
    when: ProtocolName = "streaming" if entry.name == "full" else protocol
    return OperatingPoint(entry.label, budget), PolicySpec(entry.name, None, None, budget, entry.options, when)


def own_size(row: Row) -> float:
    """Mean kept fraction of a policy's results, as a budget for others."""
    return round(float(np.mean([result.kept for result in row if result is not None])), 4)


def evaluated(
    evaluate: Evaluate, asked: Mapping[OperatingPoint, PolicySpec], samples: list[SampleRef], progress: Progress
) -> dict[OperatingPoint, Row]:
    """Results of one policy at some sizes, all asked for at once."""
    (label,) = {point.policy for point in asked}
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(label, done, len(asked) * len(samples))

    return dict(zip(asked, evaluate(list(asked.values()), samples, count), strict=True))


def records(asked: Mapping[OperatingPoint, PolicySpec], results: Mapping[OperatingPoint, Row]) -> list[dict[str, Any]]:
    """The lines of `samples.jsonl`, in the order of `asked`. A sample that any result is missing of is left out."""
    complete = [all(results) for results in zip(*results.values(), strict=True)]
    return [
        _record(result, point, spec)
        for point, spec in asked.items()
        for result, usable in zip(results[point], complete, strict=True)
        if usable and result is not None
    ]


def metric_name(policy: str) -> str:
    """A policy's label as MLflow takes it in the name of a metric."""
    return re.sub(r"[^\w\-. ]+", "_", policy).strip("_")


def _record(result: SampleResult, point: OperatingPoint, spec: PolicySpec) -> dict[str, Any]:
    line = dataclasses.asdict(result)
    line["sample"] = line.pop("index")
    line |= {"policy": point.policy, "budget": point.budget}
    return line | {"options": dict(spec.options)} if spec.options else line
