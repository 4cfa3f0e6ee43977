"""`--json`: what programs read of commands is one JSON value on standard output, and says what people are told."""

from __future__ import annotations

import json

import pytest
import yaml

from orchestrator import cli
from orchestrator.report.summary import summarise
from orchestrator.report.verdict import verdict
from tests.orchestrator.report.test_report import two_tasks


@pytest.fixture
def folder(tmp_path, monkeypatch, smoke):
    """A working folder with a finished run, one that was interrupted, and one whose files are damaged."""
    monkeypatch.chdir(tmp_path)
    for name in ("finished", "interrupted", "damaged"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "job.yaml").write_text(yaml.safe_dump({**smoke, "name": name, "seed": 4}))
    look = {"validation_score": 0.75, "validation_full": 0.5, "validation_kept": 0.25, "validation_fitness": 0.625}
    records = [{"generation": 1}, {"generation": 2, **look}]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "runs" / "interrupted" / "generations.jsonl").write_text(text)
    (tmp_path / "runs" / "finished" / "result.json").write_text(json.dumps(summarise(two_tasks())))
    (tmp_path / "runs" / "damaged" / "job.yaml").write_text("{seed: 2026-11-28, generations: .nan, model: 3}")
    (tmp_path / "runs" / "damaged" / "result.json").write_text('{"policies": {"full": 3, "namm": {"mean": NaN}}}')
    return tmp_path


def told(capsys, *words: str):
    """What a command prints, read as JSON."""
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_runs(folder, capsys):
    damaged, finished, interrupted = told(capsys, "runs")
    assert finished["state"] == "finished" and finished["heldout"]["namm"] == pytest.approx({"mean": 0.75, "kept": 0.3})
    assert finished["validation"] is None and (finished["told"], finished["seed"]) == (0, 4)
    assert interrupted["validation"] == {"score": 0.75, "kept": 0.25, "full": 0.5, "fitness": 0.625}
    assert (interrupted["name"], interrupted["state"]) == ("interrupted", "interrupted")
    assert (interrupted["told"], interrupted["generations"], interrupted["heldout"]) == (2, 3, {})
    assert interrupted["model"] == "recall-small" and (folder / interrupted["folder"] / "job.yaml").is_file()
    assert damaged["seed"] is None and damaged["generations"] is None
    assert damaged["heldout"] == {"namm": {"mean": None, "kept": None}}


def test_runs_where_there_are_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert told(capsys, "runs") == []


def test_report(folder, capsys):
    result = json.loads((folder / "runs" / "finished" / "result.json").read_text())
    assert told(capsys, "report", "finished") == {"verdict": verdict(result), "result": result}
    assert cli.main(["report", "finished", "--json", "--markdown"]) == 2
    assert "not both" in capsys.readouterr().err


def test_models(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path))
    models = told(capsys, "models", "list")
    assert "smollm2" in [model["name"] for model in models]
    assert all(model["fetched"] is None and model["license"] for model in models)


def test_a_head_that_does_not_run(capsys, tmp_path):
    assert cli.main(["head", "status", "--folder", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"cache": False, "gcs": False, "mlflow": False}
    assert cli.main(["head", "stop", "--folder", str(tmp_path), "--json"]) == 2
