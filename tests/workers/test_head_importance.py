"""The heads of a real small model, measured by the command."""

from __future__ import annotations

import json

import pytest
import yaml

from workers import head_importance


@pytest.fixture
def job(tmp_path):
    said = {
        "model": {"path": "models/recall-small", "ntk_alpha": 128},
        "tasks": {"source": "recall", "tokens": 256, "kinds": ["passkey"]},
        "train": ["passkey"],
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(said))
    return path


def test_two_passes_are_printed_kept_and_not_measured_again(job, tmp_path, capsys):
    out = tmp_path / "heads.jsonl"
    arguments = [str(job), "--samples", "2", "--window", "64", "--out", str(out)]
    assert head_importance.main(arguments) == 0
    told = capsys.readouterr()
    assert "depths: 3\nheads: 2\nthe first 6 numbers of start.theta:" in told.out
    assert len(told.out.strip().splitlines()[-1].split(", ")) == 6 and told.err.count(" s\n") == 4
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["of"].split(",")[0] for row in rows] == [f"passkey/{index}" for index in range(4)]
    assert max(map(max, rows[0]["worths"])) > 0.05  # some head finds the passkey
    assert head_importance.main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == told.out and not again.err


def test_what_is_no_job_gets_one_line(tmp_path, capsys):
    (tmp_path / "job.yaml").write_text("[]")
    for name in ("job.yaml", "none.yaml"):
        assert head_importance.main([str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
