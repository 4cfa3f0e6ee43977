"""A job whose policy, scorer, task source, target and search all come from a folder outside the package."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file

from tests.plug_in_kinds import NEWCOMERS

JOB = {
    "plugins": [str(NEWCOMERS)],
    "target": "reader",
    "tasks": {"source": "whereabouts", "people": 5},
    "train": ["residence"],
    "heldout": [],
    "memory": {"update_interval": 64, "scorer": "straight"},
    "search": {"algorithm": "strides", "population": 4, "stride": 0.25},
    "evaluation": {"samples": 3, "policies": ["full", "namm", {"name": "ends", "head": 8}, "ends"]},
    "workers": {"count": 1},
}


def test_one_of_each_from_outside(namm, job_file, tmp_path):
    """Each was used: theta has the scorer's length, rows have the policy's options, answers are the target's."""
    process = namm("evolve", job_file(**JOB))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    run = tmp_path / "runs" / "smoke"
    assert load_file(run / "namm" / "model.safetensors")["theta"].shape == (25 + 1,)
    lines = [json.loads(line) for line in (run / "samples.jsonl").open()]
    assert {line["policy"] for line in lines} == {"full", "namm", "ends(head=8)", "ends"}
    assert all(line["prediction"].startswith("read: ") for line in lines)
    assert {line["task"] for line in lines} == {"residence"}
    assert {line["sigma"] for line in map(json.loads, (run / "generations.jsonl").open())} == {0.065}
    again = namm("evolve", "--resume", "smoke")  # by name: the run's own job.yaml names the folder
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"plugins": ["nowhere"]}, "nowhere is neither a folder nor an importable package"),
        ({"plugins": []}, "unknown"),
        ({"search": {"algorithm": "strides", "strid": 0.25}}, "did you mean 'stride'"),
        ({"tasks": {"source": "whereabouts", "peple": 5}}, "did you mean 'people'"),
        ({"evaluation": {"policies": ["full", "namm", {"name": "ends", "haed": 8}]}}, "did you mean 'head'"),
    ],
)
def test_what_is_wrong_with_one_is_one_line(namm, job_file, changes, message):
    _, errors = (process := namm("evolve", job_file(**{**JOB, **changes}))).communicate(timeout=120)
    lines = [line for line in errors.splitlines() if line.startswith("namm: ")]
    assert process.returncode == 2 and len(lines) == 1 and message in lines[0], errors
