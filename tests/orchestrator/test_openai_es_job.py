"""A whole job whose search is OpenAI-ES: killed and resumed, it ends in the same place as undisturbed."""

from __future__ import annotations

import json
import time

import numpy as np
import psutil
from safetensors.numpy import load_file

SETTINGS = {
    "search": {"algorithm": "openai_es", "population": 4, "learning_rate": 0.02},
    "train": ["residence"],
    "heldout": [],
    "generations": 3,
    "fitness": {"samples": 3, "statistics_samples": 1, "measure": "probability"},
    "validation": {"every": 3, "samples": 1},
    "evaluation": {"samples": 2, "policies": ["full", "namm"]},
    "workers": {"count": 1},
}


def test_killed_and_resumed_it_ends_in_the_same_place(namm, job_file, tmp_path):
    runs, job = tmp_path / "runs", job_file(**SETTINGS)
    whole = namm("evolve", job, "name=whole")
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors

    journal = runs / "killed" / "journal.jsonl"
    process = namm("evolve", job, "name=killed", start_new_session=True)
    end = time.monotonic() + 200
    while not (journal.exists() and journal.read_text().count('"told"')):  # a generation is over, the next under way
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:  # Ray's own daemons: a local Ray ends with its driver
        if member.is_running():
            member.kill()
    assert not (runs / "killed" / "result.json").exists()
    resumed = namm("evolve", "--resume", "killed")
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors

    def told(name: str) -> list[dict]:
        lines = (runs / name / "generations.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    thetas = [load_file(runs / name / "namm" / "model.safetensors")["theta"] for name in ("whole", "killed")]
    assert np.array_equal(*thetas) and thetas[0].any()
    assert told("whole") == told("killed") and len({record["theta"] for record in told("whole")}) == 3
