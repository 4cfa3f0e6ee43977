"""A job whose records cannot be used is refused by its check, before anything is written or started."""

from __future__ import annotations

import json

import pytest

from orchestrator import session, spec
from workers.config import ModelConfig

RECORD = {
    "context": "Anna:Paris. The farmer waited.",
    "question": "Where is Anna?",
    "answers": ["Paris"],
    "metric": "qa_f1_score",
    "max_new_tokens": 3,
}


@pytest.mark.parametrize("train", [True, False])
def test_every_task_is_read(tmp_path, small_model, train):
    """Training records too, though training samples never end and nothing counts them."""
    good = json.dumps(RECORD) + "\n"
    (tmp_path / "good.jsonl").write_text(good * 3)
    (tmp_path / "bad.jsonl").write_text(good * 2 + json.dumps(RECORD | {"answers": []}) + "\n")
    job = spec.JobSpec(
        name="bad",
        tasks={"source": "jsonl", "path": str(tmp_path), "disjoint": False},
        model=ModelConfig(str(small_model)),
        train=("bad",) if train else ("good",),
        heldout=("good",) if train else ("bad",),
    )
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 3: expected 'answers' to be a list of one or more texts"):
        session.checked(job)


def test_training_records_that_no_share_is_for(tmp_path, small_model):
    (tmp_path / "good.jsonl").write_text(json.dumps(RECORD) + "\n")
    tasks = {"source": "jsonl", "path": str(tmp_path), "fractions": [0.0, 0.5, 0.5]}
    job = spec.JobSpec(name="bad", tasks=tasks, model=ModelConfig(str(small_model)), train=("good",))
    with pytest.raises(ValueError, match=r"good: none of its 1 samples is for train"):
        session.checked(job)
