"""`namm transfer` through the command line: an evaluation a target, one report, and it goes on where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from namm_core import FeatureStatistics, Namm, NammConfig
from orchestrator import cli

ASKED = ("--samples", "4", "--validation", "4", "--budgets", "0.5", "--policies", "streaming,namm-statistics-anew")


@pytest.fixture
def targets(tmp_path, smoke, monkeypatch):
    """Two job files and a NAMM, in a working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name, tokens in (("short", 200), ("long", 264)):
        job = {**smoke, "tasks": {**smoke["tasks"], "tokens": tokens}, "workers": {"count": 1}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(job))
    theta = np.random.default_rng(0).normal(0.0, 0.1, 4172).astype(np.float32)
    statistics = FeatureStatistics(np.zeros(17, np.float32), np.full(17, 0.05, np.float32), 100.0)
    Namm(NammConfig(update_interval=32), theta, statistics).save_pretrained(tmp_path / "namm")
    return tmp_path


def transfer(*arguments: str) -> int:
    return cli.main(["transfer", "--namm", "namm", *arguments])


def test_a_report_over_two_targets(targets, capsys):
    assert transfer("--to", "short.yaml", "long.yaml", *ASKED) == 0
    printed = capsys.readouterr().out
    found = json.loads((targets / "runs/transfer/transfer.json").read_text())
    assert list(found) == ["short", "long"] and "short" in printed and "long" in printed
    for of, entry in found.items():
        run = targets / "runs" / f"transfer-{of}"
        for name, file in (("result", "result.json"), ("points", "curve.json")):
            assert entry[name] == json.loads((run / file).read_text())
        policies = entry["result"]["policies"]
        assert set(policies) == {"full", "namm", "streaming", "namm-statistics-anew"}
        assert abs(policies["streaming"]["kept"] - policies["namm"]["kept"]) <= 0.02
        assert {p["level"] for p in entry["points"]} == {None, 0.5, entry["result"]["own_kept"]}
    assert (targets / "runs/transfer/transfer.png").read_bytes().startswith(b"\x89PNG")
    text = (targets / "runs/transfer/transfer.md").read_text()
    assert text.count("| `streaming` |") == 2 * 6  # own size of all, sizes, a point a size, its kinds apart
    store = MlflowClient(f"sqlite:///{targets / 'mlflow.db'}")
    (run,) = store.search_runs([store.get_experiment_by_name("namm").experiment_id], "attributes.run_name = 'transfer'")
    assert run.data.metrics["long/namm/score"] == found["long"]["result"]["policies"]["namm"]["mean"]
    assert {a.path for a in store.list_artifacts(run.info.run_id)} == {"transfer.png", "transfer.md", "transfer.json"}

    assert transfer("--to", "short.yaml", *ASKED) == 2
    assert "runs/transfer exists: continue it with --resume" in capsys.readouterr().err
    assert transfer("--to", "short.yaml", "--resume", *ASKED, "--json") == 0  # nothing is computed again
    told = json.loads(capsys.readouterr().out)
    again = json.loads((targets / "runs/transfer/transfer.json").read_text())["short"]
    assert again["points"] == found["short"]["points"] and told == {"short": again}


def test_bad_input_is_one_line_before_anything_begins(targets, capsys):
    for words, message in (
        (("--to", "langage"), "unknown target 'langage'; known: language, video, control"),
        (("--to", "missing.yaml"), "missing.yaml does not exist"),
        (("--to", "short.yaml", "long.yaml", "--policies", "h20"), "unknown policy 'h20'"),
        (("--to", "short.yaml", "target=sound"), "target: unknown 'sound'; known:"),
        (("--to", "short.yaml", "--budgets", "1.5"), "budgets: kept fractions lie between 0 and 1"),
        (("--to", "short.yaml", "--namm", "nowhere"), "nowhere"),
    ):
        assert transfer(*words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not (targets / "runs").exists() and not (targets / "mlflow.db").exists()
