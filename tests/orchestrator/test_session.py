"""What a job may ask of tasks whose samples are a fixed list: refused before anything is started."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import session, spec
from orchestrator.evaluation.held_out import held_out_samples
from orchestrator.spec import JobSpec
from workers.config import ModelConfig
from workers.tasks.loading import load_tasks

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.yaml"


@pytest.fixture
def job(tmp_path, small_model) -> JobSpec:
    """A job on 40 samples in a file of its own."""
    record = {"question": "Where is Anna?", "answers": ["Paris"], "metric": "exact_match", "max_new_tokens": 1}
    lines = (json.dumps({"context": f"Text: Anna:Paris. {n}", **record}) + "\n" for n in range(40))
    (tmp_path / "own.jsonl").write_text("".join(lines))
    return JobSpec("a", ModelConfig(str(small_model)), {"source": "jsonl", "path": str(tmp_path)}, ("own",))


def test_more_samples_than_there_are(job):
    size = load_tasks(job.tasks).size("own", "heldout")
    session.checked(job, (), {"evaluation.samples": held_out_samples(job.kinds, size)})
    with pytest.raises(ValueError, match=f"samples asks for more heldout samples than the {size} that own has"):
        session.checked(job, (), {"evaluation.samples": held_out_samples(job.kinds, size + 1)})


def test_an_oracle_of_tasks_that_do_not_locate_their_answers(job):
    with pytest.raises(ValueError, match="oracle needs tasks that say where their answers stand"):
        session.checked(job, ("full", "oracle"))
    recall = {"source": "recall", "kinds": ["topic"]}
    session.checked(JobSpec("a", job.model, recall, ("topic",)), ("full", "oracle"))


def test_other_data_are_another_journal(job, tmp_path):
    before = session._identity(job, "weights")
    assert session._identity(job, "weights") == before
    file = tmp_path / "own.jsonl"
    file.write_text(file.read_text().replace("Paris", "Rome"))
    assert session._identity(job, "weights") != before


def test_other_plugins_are_another_journal_wherever_they_stand(job, tmp_path):
    """A plug-in may compute scores, so its code names the journal as our own does."""
    folder = tmp_path / "here"
    (folder / "policies").mkdir(parents=True)
    (folder / "policies" / "ours.py").write_text("TEXT = 1\n")
    identity = session._identity(replace(job, plugins=(str(folder),)), "weights")
    assert identity != session._identity(job, "weights")
    folder = folder.rename(tmp_path / "there")
    with_plugins = replace(job, plugins=(str(folder),))
    assert session._identity(with_plugins, "weights") == identity
    (folder / "policies" / "ours.py").write_text("TEXT = 2\n")
    assert session._identity(with_plugins, "weights") != identity


def test_workers_find_plugins_from_wherever_they_start(job, tmp_path, monkeypatch):
    (tmp_path / "plugins").mkdir()
    monkeypatch.chdir(tmp_path)
    config = session.evaluator_config(replace(job, plugins=("plugins", "json")))
    assert config.plugins == (str(tmp_path / "plugins"), "json")


@pytest.mark.parametrize("given, fused", [(None, False), ("off", False), ("on", True), ("auto", "auto")])
def test_the_fused_kernels_are_a_setting_of_the_job(given, fused):
    """YAML's own `on` and `off`; the kernels change last bits, so that another choice is another job."""
    overrides = [] if given is None else [f"workers.fused={given}"]
    job = spec.read(SMOKE, overrides)
    assert session.evaluator_config(job).fused == fused
    assert (job.digest() == spec.read(SMOKE).digest()) == (fused is False)


def test_an_unknown_choice_of_kernels_is_refused():
    with pytest.raises(ValueError, match="workers.fused: 'maybe' is not known"):
        spec.read(SMOKE, ["workers.fused=maybe"])
