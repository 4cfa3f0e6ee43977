"""Which of its settings serves a policy best: chosen on validation samples, by successive halving.

The settings worth trying are the policy's own (`namm_core.policies.settings`). Half of them go after each round, and
the rest see twice as many samples, so that three rounds cost about half of trying all on everything. Knows no files
and nothing of held-out samples. All that it asks for is in the journal, so that a choice that is made again is the
same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.evaluation.held_out import held_out_samples
from orchestrator.policy_entries import PolicyEntry
from orchestrator.protocols import Evaluate
from workers.unit import PolicySpec, ProtocolName, SampleRef, SampleResult

SPLIT = "validation"
"""Where the samples come from."""
ROOM = 0.01
"""Kept fraction by which a setting may exceed a size, or what the defaults keep there; one above it is not chosen."""
ROUNDS = (4, 2, 1)
"""A quarter of the samples first, then half of them, then all."""

Progress = Callable[[str, int, int], None]
"""Gets a policy's label, its results in this round so far, and the results wanted."""


@dataclass(frozen=True)
class Tuning:
    """On what settings are tried."""

    kinds: tuple[str, ...]
    """Kinds of task, which share the samples evenly."""
    samples: int
    """Validation samples of the last round."""
    sizes: tuple[float, ...]
    """Kept fractions, over which scores are averaged."""
    protocol: ProtocolName = "streaming"
    """When the policies forget."""

    @property
    def rounds(self) -> list[list[SampleRef]]:
        """The samples of each round, which contain those of the round before; at least one of each kind."""
        counts = {min(max(math.ceil(self.samples / part), len(self.kinds)), self.samples) for part in ROUNDS}
        return [held_out_samples(self.kinds, count, SPLIT) for count in sorted(counts)]


@dataclass
class _Tried:
    """One setting, as it did in the last round that it was in."""

    options: dict[str, Any]
    scores: dict[float, float]
    kept: dict[float, float]
    samples: int = 0
    too_large: bool = False

    @property
    def score(self) -> float:
        return float(np.mean([*self.scores.values()]))

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        by_size = {name: {f"{s:g}": v for s, v in getattr(self, name).items()} for name in ("scores", "kept")}
        return {"options": self.options, **by_size, "samples": self.samples, "too_large": self.too_large}


def grid(entry: PolicyEntry) -> list[dict[str, Any]]:
    """The options that are tried for an entry: the policy's `settings`, all with what the entry itself fixes.

    Raises ValueError, one line, for an unknown policy.
    """
    from namm_core import policies  # a policy's class imports torch

    found: list[dict[str, Any]] = []
    for setting in policies.settings(entry.name):
        options = {**setting, **entry.options}
        if options not in found:
            found.append(options)
    return found


def at_best(entry: PolicyEntry) -> PolicyEntry:
    """The entry with its open options to be chosen, or as it is where there is no choice. Raises as `grid`."""
    return dataclasses.replace(entry, best=len(grid(entry)) > 1)


def chosen(
    evaluate: Evaluate, entry: PolicyEntry, tuning: Tuning, progress: Progress = lambda policy, done, of: None
) -> tuple[PolicyEntry, dict[str, Any]]:
    """The entry with the options of the highest mean score, and how they were chosen (field `settings` of results).

    A setting that keeps more than its size allows is not chosen. Of equals the earlier one in the policy's list. Raises
    ValueError where no sample could be evaluated.
    """
    sizes = tuning.sizes if entry.budget is None else (entry.budget,)
    tried = [_Tried(options, {}, {}) for options in grid(entry)]
    alive, last = list(tried), len(tuning.rounds) - 1
    for number, samples in enumerate(tuning.rounds):
        _look(evaluate, entry, alive, sizes, samples, tuning.protocol, progress)
        if number == 0:  # what fits and what does not is seen at once
            for setting in alive:
                allowed = {size: max(size, tried[0].kept[size]) + ROOM for size in sizes}
                setting.too_large = any(setting.kept[size] > allowed[size] for size in sizes)
        alive = sorted((setting for setting in alive if not setting.too_large), key=lambda setting: -setting.score)
        alive = alive[: 1 if number == last else max(math.ceil(len(alive) / 2), 1)]
    record = {
        "chosen": alive[0].options,
        "tried": [setting.plain() for setting in tried],
        "sizes": list(sizes),
        "split": SPLIT,
        "samples": {kind: sum(ref.task == kind for ref in tuning.rounds[-1]) for kind in tuning.kinds},
    }
    return dataclasses.replace(entry, options=alive[0].options, best=False), record


def _look(
    evaluate: Evaluate,
    entry: PolicyEntry,
    settings: Sequence[_Tried],
    sizes: Sequence[float],
    samples: list[SampleRef],
    protocol: ProtocolName,
    progress: Progress,
) -> None:
    """Evaluates settings x sizes on the samples, and notes what came of it."""
    asked = [(setting, size) for setting in settings for size in sizes]
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(entry.label, done, len(asked) * len(samples))

    specs = [PolicySpec(entry.name, None, None, size, setting.options, protocol) for setting, size in asked]
    rows = evaluate(specs, samples, count)
    usable = [all(results) for results in zip(*rows, strict=True)]
    if not any(usable):
        raise ValueError("no validation sample could be evaluated: look at the warnings above")
    for (setting, size), row in zip(asked, rows, strict=True):
        results = [result for result, good in zip(row, usable, strict=True) if good and result is not None]
        setting.scores[size] = _mean_over_kinds(results)
        setting.kept[size] = float(np.mean([result.kept for result in results]))
        setting.samples = len(results)


def _mean_over_kinds(results: Sequence[SampleResult]) -> float:
    """Mean over kinds of the mean score of each, as in the tables."""
    kinds = dict.fromkeys(result.task for result in results)
    return float(np.mean([np.mean([r.score for r in results if r.task == kind]) for kind in kinds]))


def sentence(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for people: what was chosen among how many, and on what. found: `settings` by label; "" for none."""
    if not found:
        return ""
    one = next(iter(found.values()))
    sizes = ", ".join(f"{size:g}" for size in sorted({size for record in found.values() for size in record["sizes"]}))
    each = ", ".join(f"{label} of {len(record['tried'])}" for label, record in sorted(found.items()))
    return f"Settings chosen on {sum(one['samples'].values())} {one['split']} samples at {sizes} of the cache: {each}."
