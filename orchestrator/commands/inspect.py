"""`namm inspect`: which memory, on which job's prompts, and where the pictures and the page go. Knows no figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from orchestrator import spec
from orchestrator.commands import as_json, print_json
from orchestrator.evaluation.curve_spec import REFERENCE
from orchestrator.evaluation.held_out import held_out_samples
from orchestrator.storage import files, run_folder


@click.command(short_help="look inside a memory: what it holds, and what its scores react to")
@click.argument("memory")
@click.option("--config", help="job file whose model and tasks are used; default: the run's own")
@click.option("--samples", default=12, help="held-out prompts, over all kinds of task (12)")
@click.option("--size", type=float, help="kept fraction, of a memory that is given its size (the job's, or 0.3)")
@click.option("--out", help="folder for page and pictures; default: inspection, in the run or beside the NAMM")
@as_json
def command(memory: str, config: str | None, samples: int, size: float | None, out: str | None, plain: bool) -> None:
    """Reads held-out prompts with MEMORY (a run's name or folder, or the folder of a saved NAMM), in this process, and
    writes pictures and a page of what it holds of them."""
    if samples < 1:
        raise ValueError(f"--samples must be at least 1, not {samples}")
    source = run_folder.saved_memory(memory)
    job = spec.read(Path(config) if config else run_folder.job_beside(source))
    from namm_core import Namm  # torch and matplotlib, which a refusal need not wait for
    from orchestrator.inspection import figures, page, pictures
    from orchestrator.session import evaluator_config
    from workers.evaluator import Evaluator
    from workers.inspection import inspect

    namm = Namm.from_pretrained(source)
    if namm.takes_budget:
        size = size or job.evaluation.budget or REFERENCE
        namm = Namm(namm.config, namm.theta, namm.statistics, size)
    elif size is not None:
        raise ValueError("--size: this memory decides itself how much it keeps: leave it out")
    folder = Path(out) if out else source.parent / "inspection"
    evaluator = Evaluator(dataclasses.replace(evaluator_config(job), memory=namm.config))
    readings, sensitivity = inspect(evaluator, namm, held_out_samples(job.kinds, samples))
    found = {"name": job.name, **figures.summarise(readings, sensitivity, namm.config)}
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures.draw(found, folder)
    files.write_json(folder / "inspection.json", found)
    files.write(folder / "inspection.html", page.render(f"Inside {job.name}", found, readings, drawn))
    if plain:
        return print_json(found)
    print(f"kept {found['kept']:.3f} of the KV cache over {len(readings)} prompts")
    for kind, entry in found["kept_by_kind"].items():
        judged = "none judged yet" if entry["judged"] is None else f"{entry['judged']:.3f} of those judged"
        print(f"  {kind}: {entry['kept']:.3f} of {entry['tokens']:,} tokens, {judged}")
    print(f"page: {folder / 'inspection.html'}   pictures: {folder}/*.png   figures: {folder / 'inspection.json'}")
