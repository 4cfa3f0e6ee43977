"""Whether a disturbed run ended as the undisturbed one did: reads both run folders and MLflow, and says what differs.

Knows nothing of how a run was disturbed, nor how it was computed.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

VOLATILE = {
    "result.json": ("seconds", "search_seconds"),
    "generations.jsonl": ("seconds",),
    "MLflow": (
        "search/seconds",
        *(f"workers/{name}" for name in ("ready", "lost", "units_copied", "tokens_per_second", "evaluations")),
        *("workers/prompt_cache_hits", "workers/prompt_cache_misses"),
    ),
}
"""What may differ: times, what a driver counts since its own start, and what became of the workers."""

Key = tuple[str, str, str, int]


class Journal:
    """The results of a run folder's journal, as they stand on disk."""

    def __init__(self, folder: Path) -> None:
        self.damaged = 0
        self.told: list[int] = []
        """Generations, in the order in which they were told to the search."""
        self.facts: list[str] = []
        self.keys: list[Key] = []
        self.results: dict[Key, bytes] = {}
        for line in (folder / "journal.jsonl").read_bytes().splitlines():
            try:
                if int(line[:8], 16) != zlib.crc32(line[9:]):
                    raise ValueError("checksum")
                record = json.loads(line[9:])
            except ValueError:
                self.damaged += 1
                continue
            if "told" in record:
                self.told.append(record["told"]["generation"])
            elif "fact" in record:
                self.facts.append(record["fact"])
            elif "policy" in record:
                key = tuple(record[name] for name in ("policy", "task", "split", "index"))
                self.keys.append(key)
                self.results[key] = line[9:]
            elif "job" not in record:
                raise ValueError(f"{folder}: a record of an unknown kind in the journal: {record}")

    @property
    def duplicates(self) -> int:
        """Results that were written more than once."""
        return len(self.keys) - len(self.results)


def differences(undisturbed: Path, disturbed: Path, generations: int) -> Iterator[str]:
    """What is not as it should be in two run folders of the same job, a line each."""
    one, two = Journal(undisturbed), Journal(disturbed)
    for name, journal in (("undisturbed", one), ("disturbed", two)):
        if journal.damaged:
            yield f"{name} journal: {journal.damaged} damaged line(s)"
        if journal.duplicates:
            twice = [key for key, number in Counter(journal.keys).items() if number > 1]
            yield f"{name} journal: {journal.duplicates} result(s) told twice, such as {twice[0]}"
        if journal.told != list(range(1, generations + 1)):
            yield f"{name} journal: the search was told generations {journal.told}"
        if len(set(journal.facts)) != len(journal.facts):
            yield f"{name} journal: facts are there twice: {journal.facts}"
    if missing := one.results.keys() - two.results.keys():
        yield f"{len(missing)} result(s) are missing, such as {min(missing)}"
    if more := two.results.keys() - one.results.keys():
        yield f"{len(more)} result(s) were not asked for in the undisturbed run, such as {min(more)}"
    unequal = [key for key in one.results.keys() & two.results.keys() if one.results[key] != two.results[key]]
    if unequal:
        yield f"{len(unequal)} result(s) differ, such as {min(unequal)}"
    if theta(undisturbed) != theta(disturbed):
        yield "theta differs"
    yield from _unequal("result.json", [json.loads((f / "result.json").read_text()) for f in (undisturbed, disturbed)])
    for name in ("generations.jsonl", "samples.jsonl"):
        rows = [[json.loads(line) for line in (f / name).read_text().splitlines()] for f in (undisturbed, disturbed)]
        if len(rows[0]) != len(rows[1]):
            yield f"{name}: {len(rows[1])} lines, {len(rows[0])} undisturbed"
        for number, pair in enumerate(zip(*rows, strict=False), 1):
            yield from _unequal(f"{name} line {number}", pair)


def theta(folder: Path) -> bytes:
    """The memory that a run ended with, byte for byte."""
    return (folder / "namm" / "model.safetensors").read_bytes()


def mlflow_differences(undisturbed: Path, disturbed: Path, generations: int) -> Iterator[str]:
    """What is not as it should be in MLflow's record of two runs, a line each."""
    (status, one), (ended, two) = _history(undisturbed), _history(disturbed)
    if (status, ended) != ("FINISHED", "FINISHED"):
        yield f"MLflow: the runs are {status} and {ended}"
    if [step for step, _ in one.get("fitness/mean", ())] != list(range(1, generations + 1)):
        yield "MLflow: the undisturbed run does not have each generation once"
    for name in sorted(one.keys() | two.keys()):
        first, second = one.get(name, []), two.get(name, [])
        if name.startswith("heldout/"):  # the job's own figures, told again by a job whose end was killed: last counts
            first, second = sorted(set(first)), sorted(set(second))
        if [step for step, _ in first] != [step for step, _ in second]:
            yield f"MLflow: {name} at steps {[s for s, _ in second]}, undisturbed {[s for s, _ in first]}"
        elif first != second and name not in VOLATILE["MLflow"]:
            yield f"MLflow: {name} differs"


def _history(folder: Path) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """An MLflow run's status, and its metrics but for the machine's: {name: [(step, value)]} by step."""
    record = json.loads((folder / "mlflow.json").read_text())
    client = MlflowClient(record["uri"])
    run = client.get_run(record["run_id"])
    names = [name for name in run.data.metrics if not name.startswith("system/")]
    points = {name: client.get_metric_history(record["run_id"], name) for name in names}
    return run.info.status, {name: sorted((p.step, p.value) for p in found) for name, found in points.items()}


def _unequal(what: str, pair: list[dict[str, Any]]) -> Iterator[str]:
    one, two = pair
    volatile = VOLATILE.get(what.split()[0], ())
    names = [n for n in sorted(one.keys() | two.keys()) if n not in volatile and repr(one.get(n)) != repr(two.get(n))]
    if names:
        n = names[0]
        yield f"{what}: {', '.join(names)} differ ({n}: {one.get(n)} undisturbed, {two.get(n)} disturbed)"[:300]
