"""The model card of a run: what machines read in it, what people read, and that its example runs."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard

from namm_core import Namm, NammConfig
from orchestrator import spec
from orchestrator.report import model_card as card
from orchestrator.report.summary import summarise


@pytest.fixture
def job(smoke) -> spec.JobSpec:
    plain = {**smoke, "name": "a: 'strange' name", "share": {"license": "apache-2.0"}}
    return spec.parse(json.dumps(plain), "job.yaml")


@pytest.fixture
def result() -> dict:
    scores = {"full": [1, 0, 0, 1], "namm": [1, 1, 0, 1], "random": [0, 0, 0, 1]}
    kept = {"full": 1.0, "namm": 0.4, "random": 0.4}
    records = [
        {"task": task, "sample": i, "policy": name, "budget": None, "score": score, "kept": kept[name]}
        for name, row in scores.items()
        for i, (task, score) in enumerate(zip(("residence", "topic") * 2, row, strict=True))
    ]
    extra = {"generations": 3, "best_generation": 2, "evaluations": 1234, "seed": 7}
    return summarise(records, {**extra, "trained_tasks": ["residence", "topic"], "heldout_tasks": ["resident"]})


def test_the_hub_reads_it(job, result):
    data = ModelCard(card.text(job, result)).data
    assert (data.license, data.library_name, data.base_model) == ("apache-2.0", "namm", "recall-small")
    assert {"namm", "custom_generate", "task:residence"} <= set(data.tags)
    found = {entry.dataset_config: entry.metric_value for entry in data.eval_results}
    assert found == {"residence": 0.5, "topic": 1.0}
    assert data.model_name == "namm-a: 'strange' name"


def test_people_read_figures_with_their_intervals(job, result):
    text = card.text(job, result)
    low, high = result["policies"]["namm"]["difference_interval"]
    assert f"scores **0.750**, +0.250 against the full cache on the same samples (95 % interval {low:+.3f}" in text
    assert f"[{low:+.3f}, {high:+.3f}]" in text and "keeps **0.40** of the KV cache" in text
    assert "1,234 evaluations" in text and "`residence`, `topic`; also measured on `resident`" in text


def test_figures_are_tags(result):
    found = card.figures(result)
    low, high = result["policies"]["namm"]["difference_interval"]
    assert found == {
        "score": "0.7500", "kept": "0.4000", "full_score": "0.5000", "heldout_samples": "4",
        "difference": "0.2500", "difference_low": f"{low:.4f}", "difference_high": f"{high:.4f}",
    }  # fmt: skip


def test_its_example_runs_as_it_stands(job, result, tmp_path, capsys):
    Namm(NammConfig(update_interval=64)).save_pretrained(tmp_path / "namm", card.text(job, result))
    text = (tmp_path / "namm" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    exec(code.replace("FOLDER OR REPOSITORY OF THIS CARD", str(tmp_path / "namm")), {})
    assert capsys.readouterr().out.startswith("Some long text.")


def test_what_is_said_of_a_memory_does_not_change_what_it_is(job, smoke):
    other = spec.parse(json.dumps({**smoke, "share": {"registered_model": "ours"}, "name": job.name}), "job.yaml")
    assert job.digest() == other.digest() and other.registered_model == "ours"
    assert job.registered_model == "namm-a- -strange- name"
    for bad in ("share.alias=latest", "share.alias='a b'", "share.registered_model=a/b", "share.licence=mit"):
        with pytest.raises(ValueError, match="share"):
            spec.parse(json.dumps(smoke), "job.yaml", [bad])
