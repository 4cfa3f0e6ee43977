"""A memory in a real MLflow model registry: registered once, found by its alias, loaded from there."""

from __future__ import annotations

import json

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from namm_core import Namm, NammConfig
from orchestrator.tracking import registry
from orchestrator.tracking.store import default_store
from orchestrator.tracking.ties import MEMORY_TAG, ties
from orchestrator.tracking.tracker import Tracker

NAME = "namm-recall"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return default_store(tmp_path_factory.mktemp("store") / "runs")


def saved(folder, seed: int) -> Namm:
    namm = Namm(NammConfig(update_interval=64), torch.randn(4172, generator=torch.Generator().manual_seed(seed)))
    namm.save_pretrained(folder, "# A memory\n")
    return namm


def fetched(uri: str, name: str, version: str, folder) -> Namm:
    """The files of a registered version, as a person would fetch them."""
    place = MlflowClient(uri).get_model_version_download_uri(name, version)
    folder = folder / f"got-{version}"
    folder.mkdir()
    return Namm.from_pretrained(mlflow.artifacts.download_artifacts(place, tracking_uri=uri, dst_path=str(folder)))


def test_a_memory_is_a_version_with_an_alias_and_its_figures(store, tmp_path):
    namm = saved(tmp_path / "namm", 0)
    tracker = Tracker(store, "namm", "recall")
    tracker.register(tmp_path / "namm", NAME, "champion", {"score": "0.857", "kept": "0.47"}, "# What it is")
    assert tracker.finish()
    client = MlflowClient(store)
    version = client.get_model_version_by_alias(NAME, "champion")
    assert (version.run_id, version.description) == (tracker.run_id, "# What it is")
    assert version.tags == {"score": "0.857", "kept": "0.47", registry.DIGEST: registry.digest(tmp_path / "namm")}
    assert torch.equal(fetched(store, NAME, version.version, tmp_path).theta, namm.theta)


def test_a_resumed_job_registers_what_is_new_and_nothing_twice(store, tmp_path):
    first = saved(tmp_path / "namm", 1)
    tracker = Tracker(store, "namm", "resumed")
    tracker.register(tmp_path / "namm", "namm-resumed", "champion", {"score": "0.5"})
    assert tracker.finish()
    again = Tracker(store, "namm", "resumed", run_id=tracker.run_id)
    again.register(tmp_path / "namm", "namm-resumed", "champion", {"score": "0.5"})
    assert again.flush()
    client = MlflowClient(store)
    assert [version.version for version in client.search_model_versions("name = 'namm-resumed'")] == [1]
    second = saved(tmp_path / "namm", 2)  # the job went on for some generations
    again.register(tmp_path / "namm", "namm-resumed", "champion", {"score": "0.6"})
    assert again.finish()
    assert client.get_model_version_by_alias("namm-resumed", "champion").tags["score"] == "0.6"
    for version, namm in (("1", first), ("2", second)):
        assert torch.equal(fetched(store, "namm-resumed", version, tmp_path).theta, namm.theta)


def test_a_registry_that_refuses_does_not_stop_a_job(store, tmp_path, caplog):
    saved(tmp_path / "namm", 3)
    tracker = Tracker(store, "namm", "refused")
    tracker.register(tmp_path / "namm", "no:such/name", "champion", {})
    tracker.register(tmp_path / "nowhere", "namm-nowhere", "champion", {})
    assert tracker.finish()
    assert "registered model no:such/name" in caplog.text and "namm-nowhere" in caplog.text
    assert MlflowClient(store).get_run(tracker.run_id).info.status == "FINISHED"


def test_who_evaluates_a_memory_is_tied_to_the_run_that_evolved_it(store, tmp_path):
    """By the memory's digest wherever it is, and below its run in the store where that is."""
    saved(tmp_path / "run" / "namm", 3)
    parent = Tracker(store, "namm", "evolved")
    (tmp_path / "run" / "mlflow.json").write_text(json.dumps({"uri": store, **parent.ids}))
    tied = ties(tmp_path / "run" / "namm", store)
    child = Tracker(store, "namm", "evaluated", tags=tied)
    parent.tag(MEMORY_TAG, registry.digest(tmp_path / "run" / "namm"))
    assert parent.finish() and child.finish()
    client = MlflowClient(store)

    def found(condition: str) -> set[str]:
        return {run.info.run_id for run in client.search_runs([parent.experiment_id], condition)}

    assert found(f"tags.mlflow.parentRunId = '{parent.run_id}'") == {child.run_id}
    assert found(f"tags.`{MEMORY_TAG}` = '{tied[MEMORY_TAG]}'") == {parent.run_id, child.run_id}
    assert ties(tmp_path / "run" / "namm", "sqlite:///elsewhere.db") == {MEMORY_TAG: tied[MEMORY_TAG]}
    assert ties("somebody/on-the-hub", store) == {}
