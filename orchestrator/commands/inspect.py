"""`namm inspect`: which memory, on which job's prompts, and where the pictures and the page go. Knows no figures."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from orchestrator import spec
from orchestrator.evaluation import held_out as evaluation
from orchestrator.session import RUNS, evaluator_config
from orchestrator.storage import files


def add_command(commands) -> None:
    """Adds `inspect` to the `namm` command."""
    parser = commands.add_parser("inspect", help="look inside a memory: what it holds, and what its scores react to")
    parser.add_argument("memory", help="a run's name or folder, or the folder of a saved NAMM")
    parser.add_argument("--config", help="job file whose model and tasks are used; default: the run's own")
    parser.add_argument("--samples", type=int, default=12, help="held-out prompts, over all kinds of task (12)")
    parser.add_argument(
        "--out", help="folder for page and pictures; default: inspection, in the run or beside the NAMM"
    )
    parser.set_defaults(command=inspect)


def inspect(options: argparse.Namespace) -> None:
    """Reads held-out prompts with the memory, in this process, and writes what is to be seen of it.

    Raises ValueError, one line, for bad input.
    """
    if options.samples < 1:
        raise ValueError(f"--samples must be at least 1, not {options.samples}")
    place, config = find(options.memory, options.config)
    job = spec.read(config)
    from namm_core import Namm
    from orchestrator.inspection import figures as inspection
    from orchestrator.inspection import page
    from orchestrator.inspection import pictures as inspection_pictures
    from workers.evaluator import Evaluator
    from workers.inspection import inspect as read

    namm = Namm.from_pretrained(place)
    out = Path(options.out) if options.out else place.parent / "inspection"
    evaluator = Evaluator(evaluator_config(dataclasses.replace(job, memory=namm.config)))
    readings, sensitivity = read(evaluator, namm, evaluation.held_out_samples(job.kinds, options.samples))
    found = {"name": job.name, **inspection.summarise(readings, sensitivity, namm.config)}
    out.mkdir(parents=True, exist_ok=True)
    pictures = inspection_pictures.draw(found, out)
    files.write_json(out / "inspection.json", found)
    files.write(out / "inspection.html", page.render(f"Inside {job.name}", found, readings, pictures))
    print(f"kept {found['kept']:.3f} of the KV cache over {len(readings)} prompts")
    for kind, entry in found["kept_by_kind"].items():
        judged = "none judged yet" if entry["judged"] is None else f"{entry['judged']:.3f} of those judged"
        print(f"  {kind}: {entry['kept']:.3f} of {entry['tokens']:,} tokens, {judged}")
    print(f"page: {out / 'inspection.html'}   pictures: {out}/*.png   figures: {out / 'inspection.json'}")


def find(memory: str, config: str | None) -> tuple[Path, Path]:
    """The saved NAMM and the job file that are meant. Raises ValueError when one is not there."""
    folder = next((f for f in (Path(memory), RUNS / memory) if f.is_dir()), None)
    if folder is None:
        raise ValueError(f"no run and no saved NAMM {memory!r}: give a run's name, or a folder with model.safetensors")
    place = folder if (folder / "model.safetensors").is_file() else folder / "namm"
    if not (place / "model.safetensors").is_file():
        raise ValueError(f"{folder} holds no memory yet: finish it with namm evolve --resume {folder.name}")
    if config is None:
        config = place.resolve().parent / "job.yaml"
        if not config.is_file():
            raise ValueError(f"{place} says nothing of a model and tasks: give --config JOB.yaml")
    return place, Path(config)
