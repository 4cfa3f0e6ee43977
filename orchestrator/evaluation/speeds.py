"""How fast policies read and write, and how large their caches get: measured in turn on one worker, then compared.

Knows no scores. Seconds depend on the machine and on what else it does: no decision may depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from orchestrator.evaluation.held_out import OperatingPoint, Progress
from workers.unit import PolicySpec, SampleRef

if TYPE_CHECKING:  # imports torch
    from workers.timing import Timing

DECODED = 32
"""Tokens that a decoding speed is measured on."""
FULL = OperatingPoint("full", None)
"""What every speed and size is compared with."""

Ask = Callable[..., Any]
"""Calls a method of one worker's evaluator (`Dispatcher.ask`)."""
Round = dict[OperatingPoint, list[float]]
"""The fields of a `workers.timing.Timing` for each policy and size."""


def measured(
    ask: Ask, asked: Mapping[OperatingPoint, PolicySpec], prompts: Sequence[SampleRef], rounds: int, progress: Progress
) -> list[list[list[float]]]:
    """rounds x policies x fields of a `Timing`, as JSON has them; none where this kind of target has no speeds."""
    order = list(asked)
    first: Timing | None = ask(
        "timing", PolicySpec("full"), prompts[0], DECODED
    )  # the first call also pays for warming up
    if first is None:
        return []
    found, done = [], 0
    for number in range(rounds):
        start = number * len(order) // rounds  # no policy is always first, or always follows the same one
        times: Round = {}
        for point in [*order[start:], *order[:start]]:
            times[point] = list(ask("timing", asked[point], prompts[number % len(prompts)], DECODED))
            done += 1
            progress(point.policy, done, rounds * len(order))
        found.append([times[point] for point in order])
    return found


def compared(rounds: Sequence[Round]) -> dict[OperatingPoint, dict[str, float]]:
    """Speed and size by policy and budget.

    Rates are medians over the rounds, in tokens a second; `..._ratio` is the median of what was, within a round, the
    rate over the full cache's. Bytes are the largest of all rounds.
    """
    found: dict[OperatingPoint, dict[str, float]] = {}
    for point in rounds[0] if rounds else ():
        rates = [[(t[0] / t[1], t[2] / t[3]) for t in (times[point], times[FULL])] for times in rounds]
        cost = found[point] = {}
        for i, name in enumerate(("prefill", "decode")):
            cost[f"{name}_tokens_per_second"] = median(mine[i] for mine, _ in rates)
            cost[f"{name}_ratio"] = median(mine[i] / full[i] for mine, full in rates)
        largest = max((times[point] for times in rounds), key=lambda t: t[4] + t[5])
        cost["peak_cache_bytes"] = largest[4] + largest[5]
        cost["peak_kv_bytes"], cost["peak_state_bytes"] = largest[4], largest[5]
    for cost in found.values():
        cost["peak_cache_ratio"] = cost["peak_cache_bytes"] / found[FULL]["peak_cache_bytes"]
    return found
