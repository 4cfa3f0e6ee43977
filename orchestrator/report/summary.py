"""What a job's held-out samples say: the mapping of `result.json`. Knows no tables, files, search or model.

All differences are paired: two policies are compared sample by sample, on the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.paired import paired_interval, plain
from orchestrator.report.cells import LEADING

Key = tuple[str, int]


def summarise(records: Sequence[Mapping], extra: Mapping | None = None) -> dict:
    """The mapping of `result.json` from the lines of `samples.jsonl`; the order of the lines does not matter.

    Each policy has the same once more in `groups`, for the trained kinds (`trained`) and for those that evolution never
    saw (`heldout`), as far as there are samples of them.

    A record has task, sample, policy, budget (a kept fraction or None), score (0..1) and kept (fraction).
    `extra` is merged at the top level. Its `trained_tasks` and `heldout_tasks`, where given, order the tasks
    and give each policy `mean_trained` and `mean_heldout_kinds`, over those of them that have samples.
    Numbers that do not exist (the interval of one sample) are None, so that the mapping is strict JSON.

    Raises ValueError where there is no `full`, a policy has a sample twice, two budgets or a score that is
    no number, or the policies do not cover the same samples.
    """
    extra = dict(extra or {})
    policies, budgets = _by_policy(records)
    tasks = _ordered_tasks({task for task, _ in policies["full"]}, extra)
    keys = sorted(policies["full"], key=lambda key: (tasks.index(key[0]), key[1]))
    scores = {name: np.array([float(rows[key]["score"]) for key in keys]) for name, rows in policies.items()}
    by_task = {task: [i for i, key in enumerate(keys) if key[0] == task] for task in tasks}
    base = {task: float(scores["full"][rows].mean()) for task, rows in by_task.items()}

    summary: dict[str, dict] = {}
    for name in _ordered_policies(policies):
        score = {task: float(scores[name][rows].mean()) for task, rows in by_task.items()}
        difference, low, high = paired_interval(scores[name] - scores["full"])
        entry = {
            "score": score,
            "mean": _mean(score.values()),
            "normalised": _mean(score[task] / (base[task] + 1e-7) for task in tasks),
            "normalised_tasks": {task: score[task] / (base[task] + 1e-7) for task in tasks},
            "kept_tasks": {
                task: _mean(float(policies[name][keys[i]]["kept"]) for i in rows) for task, rows in by_task.items()
            },
            "kept": _mean(float(policies[name][key]["kept"]) for key in keys),
            "budget": budgets[name],
            "difference": difference,
            "difference_interval": [plain(low), plain(high)],
            "samples": len(keys),
        }
        if "namm" in scores and name != "namm":
            difference, low, high = paired_interval(scores["namm"] - scores[name])
            entry |= {"namm_difference": difference, "namm_difference_interval": [plain(low), plain(high)]}
        for field, group in {"mean_trained": "trained_tasks", "mean_heldout_kinds": "heldout_tasks"}.items():
            if group in extra:
                entry[field] = _mean(score[task] for task in extra[group] if task in score)
        summary[name] = entry
    for group, field in {"trained": "trained_tasks", "heldout": "heldout_tasks"}.items():
        if kinds := [task for task in extra.get(field, ()) if task in by_task]:
            for name, part in _group(scores, {task: by_task[task] for task in kinds}).items():
                summary[name].setdefault("groups", {})[group] = part
    if taken := {"base", "policies"} & set(extra):
        raise ValueError(f"extra holds {sorted(taken)}, which the samples settle: leave it out")
    return {"base": base, "policies": summary, **extra}


def _group(scores: Mapping[str, np.ndarray], by_task: Mapping[str, list[int]]) -> dict[str, dict]:
    """Score and paired differences of each policy on some kinds alone. by_task: their rows of `scores`."""
    rows = [row for of_task in by_task.values() for row in of_task]
    found = {}
    for name, all_scores in scores.items():
        part: dict = {
            "kinds": list(by_task),
            "score": _mean(float(all_scores[of_task].mean()) for of_task in by_task.values()),
            "samples": len(rows),
        }
        for field, left, right in (("difference", name, "full"), ("namm_difference", "namm", name)):
            if left in scores and left != right:
                difference, low, high = paired_interval(scores[left][rows] - scores[right][rows])
                part |= {field: difference, f"{field}_interval": [plain(low), plain(high)]}
        found[name] = part
    return found


def _by_policy(records: Sequence[Mapping]) -> tuple[dict[str, dict[Key, Mapping]], dict[str, float | None]]:
    policies: dict[str, dict[Key, Mapping]] = {}
    budgets: dict[str, float | None] = {}
    for record in records:
        name, key = record["policy"], (record["task"], record["sample"])
        rows = policies.setdefault(name, {})
        if budgets.setdefault(name, record["budget"]) != record["budget"]:
            raise ValueError(
                f"policy {name!r} has budgets {budgets[name]} and {record['budget']}: summarise one at a time"
            )
        if key in rows:
            raise ValueError(f"policy {name!r} has sample {key[1]} of {key[0]!r} twice: keep one record of it")
        if not isinstance(record["score"], (int, float)) or not math.isfinite(record["score"]):
            raise ValueError(
                f"policy {name!r} scored {record['score']} on sample {key[1]} of {key[0]!r}: "
                "leave a failed sample out, for all policies"
            )
        rows[key] = record
    if "full" not in policies:
        raise ValueError("no samples of policy 'full': evaluate the full cache too, all others are compared with it")
    for name, rows in policies.items():
        if different := rows.keys() ^ policies["full"].keys():
            task, sample = min(different)
            raise ValueError(
                f"policies 'full' and {name!r} do not cover the same samples: {len(different)} differ, "
                f"first in sample {sample} of {task!r}; evaluate all policies on the same samples"
            )
    return policies, budgets


def _ordered_tasks(found: set[str], extra: Mapping) -> list[str]:
    named = [*extra.get("trained_tasks", ()), *extra.get("heldout_tasks", ())]
    return [task for task in dict.fromkeys(named) if task in found] + sorted(found - set(named))


def _ordered_policies(policies: Mapping) -> list[str]:
    return [name for name in LEADING if name in policies] + sorted(set(policies) - set(LEADING))


def _mean(values) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None
