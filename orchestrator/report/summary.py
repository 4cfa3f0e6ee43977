"""What a job's held-out samples say: `result.json`'s mapping and its table. Knows no files, search or model.

All differences are paired: two policies are compared sample by sample, on the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from orchestrator.paired import paired_interval, plain

LEADING = ("full", "namm", "oracle")
HELDOUT_MARK = "†"

Key = tuple[str, int]


def summarise(records: Sequence[Mapping], extra: Mapping | None = None) -> dict:
    """The mapping of `result.json` from the lines of `samples.jsonl`; the order of the lines does not matter.

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

    summary = {}
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
    if taken := {"base", "policies"} & set(extra):
        raise ValueError(f"extra holds {sorted(taken)}, which the samples settle: leave it out")
    return {"base": base, "policies": summary, **extra}


def table(result: Mapping) -> Table:
    """The result for a terminal of 80 columns or more: a table of the policies above one of scores by task.

    An interval is written as mean ± half its width. Held-out kinds are marked, the NAMM is bold.
    """
    names = _by_score(result["policies"])
    parts = [_policies_table(result, names), _tasks_table(result, names), Text(_caption(result), "dim")]
    both = Table.grid()
    for part in parts:
        both.add_row(part)
        both.add_row("")
    return both


def markdown(result: Mapping) -> str:
    """The result as a Markdown table with all columns, intervals written as [low, high]."""
    tasks = tuple(result["base"])
    head = ["policy", "kept", "mean score", "minus full (95 %)", "namm minus it (95 %)"]
    lines = [
        head + [_task_name(result, task) for task in tasks],
        ["---"] + ["---:"] * (len(head) + len(tasks) - 1),
    ]
    for name in _by_score(result["policies"]):
        entry = result["policies"][name]
        cells = [name, f"{entry['kept']:.3f}", f"{entry['mean']:.3f}"]
        for field in ("difference", "namm_difference"):
            cells.append("" if _is_self(name, field) else _brackets(entry, field))
        cells += [f"{entry['score'][task]:.3f}" for task in tasks]
        lines.append([f"**{cell}**" if name == "namm" and cell else cell for cell in cells])
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([*rows, "", _caption(result).replace("\n", " "), "", *_by_task(result)])


def _by_task(result: Mapping) -> list[str]:
    """The NAMM by task, trained and held-out ones apart: raw score, the full cache's, their ratio, kept fraction."""
    entry = result["policies"].get("namm")
    if entry is None or "kept_tasks" not in entry:
        return []
    lines = ["| task | | score | full cache | normalised | kept |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    held_out = result.get("heldout_tasks", ())
    for task in sorted(result["base"], key=lambda task: task in held_out):
        kind = "held out" if task in held_out else "trained"
        numbers = entry["score"][task], result["base"][task], entry["normalised_tasks"][task], entry["kept_tasks"][task]
        lines.append(f"| {task} | {kind} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    return [*lines, ""]


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


def _by_score(policies: Mapping) -> list[str]:
    """Full, namm, oracle, then the others by falling mean score."""
    others = [name for name in policies if name not in LEADING]
    leading = [name for name in LEADING if name in policies]
    return leading + sorted(others, key=lambda name: (-policies[name]["mean"], name))


def _mean(values) -> float | None:
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def _is_self(name: str, field: str) -> bool:
    return name == {"difference": "full", "namm_difference": "namm"}[field]


def _brackets(entry: Mapping, field: str) -> str:
    if field not in entry:
        return ""
    low, high = entry[f"{field}_interval"]
    return f"{entry[field]:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def plus_minus(name: str, entry: Mapping, field: str) -> Text:
    """Mean ± half width; green where the interval lies above 0, red where below."""
    if _is_self(name, field) or field not in entry:
        return Text("")
    low, high = entry[f"{field}_interval"]
    if low is None:
        return Text(f"{entry[field]:+.3f}")
    style = "green" if low > 0 else "red" if high < 0 else ""
    return Text(f"{entry[field]:+.3f} ±{(high - low) / 2:.3f}", style=style)


def _task_name(result: Mapping, task: str) -> str:
    return task + HELDOUT_MARK if task in result.get("heldout_tasks", ()) else task


def _policies_table(result: Mapping, names: list[str]) -> Table:
    groups = {"mean_trained": "trained\nkinds", "mean_heldout_kinds": f"held-out\nkinds{HELDOUT_MARK}"}
    groups = {field: head for field, head in groups.items() if field in result["policies"]["full"]}
    out = _empty_table()
    out.add_column("policy", no_wrap=True)
    for head in ("kept", "mean\nscore", "minus full\n(95 %)", "namm minus it\n(95 %)", *groups.values()):
        out.add_column(head, justify="right", no_wrap=True)
    for name in names:
        entry = result["policies"][name]
        differences = [plus_minus(name, entry, field) for field in ("difference", "namm_difference")]
        means = [_number(entry[field]) for field in groups]
        cells = [f"{entry['kept']:.2f}", _number(entry["mean"]), *differences, *means]
        out.add_row(name, *cells, style="bold" if name == "namm" else "")
    return out


def _empty_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def _tasks_table(result: Mapping, names: list[str]) -> Table:
    out = _empty_table()
    out.add_column("score by task", overflow="fold")
    for name in names:
        out.add_column(name, justify="right", style="bold" if name == "namm" else "")
    for task in result["base"]:
        scores = [_number(result["policies"][name]["score"][task]) for name in names]
        out.add_row(_task_name(result, task), *scores)
    return out


def _caption(result: Mapping) -> str:
    samples = result["policies"]["full"]["samples"]
    text = f"{samples} held-out samples, differences paired; kept: share of the KV cache held after the prompt."
    if set(result.get("heldout_tasks", ())) & set(result["base"]):
        text += f"\n{HELDOUT_MARK} a kind of task that evolution never saw."
    return text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
