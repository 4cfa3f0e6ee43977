"""What is said of a run, in a sentence and on MLflow's page."""

from __future__ import annotations

import pytest

from orchestrator import spec
from orchestrator.report import description
from orchestrator.report.verdict import verdict
from orchestrator.storage.run_folder import RUNS


def result(difference: float, interval: list[float | None]) -> dict:
    full = {"mean": 0.5, "kept": 1.0, "samples": 40}
    namm = {"mean": 0.5 + difference, "kept": 0.474, "samples": 40}
    return {"policies": {"full": full, "namm": {**namm, "difference": difference, "difference_interval": interval}}}


@pytest.mark.parametrize(
    ("difference", "interval", "said"),
    [
        (0.1, [0.05, 0.15], "0.100 more than the full cache (0.500, 95 % interval +0.050 to +0.150)."),
        (-0.1, [-0.15, -0.05], "0.100 less than the full cache (0.500, 95 % interval -0.150 to -0.050)."),
        (0.1, [-0.05, 0.25], "no difference that these samples can show (+0.100, 95 % interval -0.050 to +0.250)."),
        (0.1, [None, None], "no difference that these samples can show (+0.100)."),
    ],
)
def test_what_was_won_or_lost_is_one_sentence(difference, interval, said):
    sentence = verdict(result(difference, interval))
    assert sentence.startswith(
        f"With 47 % of the cache the memory scores {0.5 + difference:.3f} on 40 held-out samples"
    )
    assert sentence.endswith(said)


def test_the_description_fits_into_a_tag_however_long_the_run_and_names_its_best(job_file):
    job = spec.read(job_file(), ["generations=900"])
    records = [
        {
            "generation": i,
            "validation_fitness": 1.0 if i == 7 else 0.5,
            "validation_score": 0.5,
            "validation_full": 0.75,
            "validation_kept": 0.25,
            "validation_difference": -0.25,
            "validation_interval": [None, None] if i == 899 else [-0.5, 0.0],
        }
        for i in range(1, 901)
    ]
    text = description.text(job, RUNS / job.name, records)
    assert len(text) < 8000 and "**900 of 900 generations told.**" in text
    assert "| **7** | **1.000** | **0.500** | **0.750** | **-0.250 [-0.500, +0.000]** | **0.25** |" in text
    assert "| 899 | 0.500 | 0.500 | 0.750 | -0.250 | 0.25 |" in text and "| 400 |" not in text
    assert f"namm evolve {RUNS / job.name / 'job.yaml'} name=smoke-again" in text
    assert "0 of 900 generations told" in description.text(job, RUNS / job.name, [])
