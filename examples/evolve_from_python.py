"""Evolve a memory from Python, without a YAML file, and look at what came of it.

The job is a dictionary with the keys of a job file. It runs as `namm evolve` would run it, with its own Ray, Redis and
MLflow, in a temporary folder: eight generations of 16 candidates on short prompts, enough to see it move and far too
few to be good. Prints the generations as they pass, the final table, and what the memory's model card says. Takes about
40 seconds on one core.

    python examples/evolve_from_python.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

JOB = {
    "name": "from-python",
    "model": {"path": "models/recall-small", "ntk_alpha": 32},
    "tasks": {"source": "recall", "tokens": 520, "kinds": ["residence", "resident"]},
    "train": ["residence"],
    "heldout": ["resident"],
    "generations": 8,
    "memory": {"update_interval": 64},
    "search": {"population": 16},
    "start": {"bias": 0.0},
    "fitness": {"measure": "probability", "samples": 4, "kept_weight": 0.4, "kept_free": 0.4},
    "validation": {"every": 3, "samples": 16},
    "evaluation": {"samples": 60, "policies": ["full", "namm", "h2o", "streaming"]},
    "workers": {"count": 1, "candidates_per_call": 8},
}


def main(folder: Path) -> None:
    """Runs the job below `folder`, then loads its memory."""
    os.environ["NAMM_RUNS"] = str(folder / "runs")  # read when orchestrator is imported
    from orchestrator import evolve

    result = evolve(JOB)

    print(f"\n{'policy':<12}{'kept':>6}{'score':>7}")
    for name, row in result["policies"].items():
        print(f"{name:<12}{row['kept']:>6.2f}{row['mean']:>7.3f}")

    from namm_core import Namm

    saved = folder / "runs" / JOB["name"] / "namm"
    memory = Namm.from_pretrained(saved)
    card = (saved / "README.md").read_text()
    print(f"\n{memory.num_parameters:,} numbers in {saved.name}/model.safetensors; its model card says:")
    print(next(line for line in card.splitlines() if line.startswith("On ")))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
