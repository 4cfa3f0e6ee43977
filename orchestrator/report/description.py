"""What MLflow's page says of a run, in Markdown, as far as it has come. Knows records and results; sends nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.report import tables
from orchestrator.report.cells import markdown_rows
from orchestrator.report.verdict import verdict
from orchestrator.spec import JobSpec
from orchestrator.storage.run_folder import MEMORY, STORY, again

MOST_ROWS = 12
"""Validations in the table, the newest ones; a tag of MLflow takes 8,000 characters."""


def text(
    job: JobSpec, folder: Path, records: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None = None
) -> str:
    """What is evolved on what, what came of it so far, and where it is. result: of a finished run."""
    looks = [record for record in records if "validation_score" in record]
    if result is not None:
        state = f"**{verdict(result)}**"
    else:
        state = f"**{len(records)} of {job.generations} generations told.**"
    parts = [state, f"The memory: `{folder / MEMORY}`.", _about(job)]  # what is read before "show more" is pressed
    if result is not None:
        parts += ["### On held-out samples", tables.markdown(result)]
    if looks:
        parts += ["### On validation samples, generation by generation", "\n".join(_looks(looks))]
    parts += [
        "### Where it is",
        f"Every generation to look at: `{STORY}` among the artifacts, and `{folder / STORY}`. "
        f"The same run again: `{again(folder)}`.",
    ]
    return "\n\n".join(parts)


def _about(job: JobSpec) -> str:
    held_out = f"; **{', '.join(job.heldout)}** are seen by the final table alone" if job.heldout else ""
    stages = f" in {len(job.stages)} stages" if job.stages else ""
    return (
        f"A memory for `{Path(job.model.path).name}`, evolved on **{', '.join(job.train)}**{held_out}: "
        f"{job.generations} generations of {job.search.population} candidates{stages} by {job.search.algorithm}, "
        f"seed {job.seed}."
    )


def _looks(looks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the newest looks, and of the best one."""
    best = max(looks, key=lambda record: record["validation_fitness"])
    shown = looks[-MOST_ROWS:]
    rows = [["generation", "fitness", "score", "full cache", "difference (95 %)", "kept"]]
    for record in shown if best in shown else [best, *shown]:
        low, high = record["validation_interval"]
        interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        cells = [str(record["generation"])]
        cells += [f"{record[f'validation_{name}']:.3f}" for name in ("fitness", "score", "full")]
        difference = record["validation_difference"]
        cells.append("" if difference is None else f"{difference:+.3f}{interval}")
        cells.append(f"{record['validation_kept']:.2f}")
        rows.append([f"**{cell}**" if record is best and cell else cell for cell in cells])
    return markdown_rows(rows)
