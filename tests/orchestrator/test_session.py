"""What a job may ask of tasks whose samples are a fixed list: refused before anything is started."""

from __future__ import annotations

import json

import pytest

from orchestrator import session as workplace
from orchestrator.evaluation.held_out import held_out_samples
from orchestrator.spec import JobSpec
from workers.config import ModelConfig
from workers.tasks.loading import load_tasks


@pytest.fixture
def job(tmp_path, small_model) -> JobSpec:
    """A job on 40 samples in a file of its own."""
    record = {"question": "Where is Anna?", "answers": ["Paris"], "metric": "exact_match", "max_new_tokens": 1}
    lines = (json.dumps({"context": f"Text: Anna:Paris. {n}", **record}) + "\n" for n in range(40))
    (tmp_path / "own.jsonl").write_text("".join(lines))
    return JobSpec("a", ModelConfig(str(small_model)), {"source": "jsonl", "path": str(tmp_path)}, ("own",))


def test_more_samples_than_there_are(job):
    size = load_tasks(job.tasks).size("own", "heldout")
    workplace.checked(job, (), {"evaluation.samples": held_out_samples(job.kinds, size)})
    with pytest.raises(ValueError, match=f"samples asks for more heldout samples than the {size} that own has"):
        workplace.checked(job, (), {"evaluation.samples": held_out_samples(job.kinds, size + 1)})


def test_an_oracle_of_tasks_that_do_not_locate_their_answers(job):
    with pytest.raises(ValueError, match="oracle needs tasks that say where their answers stand"):
        workplace.checked(job, ("full", "oracle"))
    recall = {"source": "recall", "kinds": ["topic"]}
    workplace.checked(JobSpec("a", job.model, recall, ("topic",)), ("full", "oracle"))


def test_other_data_are_another_journal(job, tmp_path):
    before = workplace._identity(job, "weights")
    assert workplace._identity(job, "weights") == before
    file = tmp_path / "own.jsonl"
    file.write_text(file.read_text().replace("Paris", "Rome"))
    assert workplace._identity(job, "weights") != before
