"""Scores of `lm_eval`'s generation tasks against `lm_eval`'s own evaluation of the same answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval", reason='lm_eval is not installed: pip install "namm[benchmarks]"')
from tests.workers.harness_compare import compare, equal
from workers.tasks.harness import HarnessTask
from workers.tasks.loading import load_tasks

ROOT = Path(__file__).parent.parent.parent
FAMILIES = (
    "gsm8k",
    "gsm8k_cot_self_consistency",
    "bbh_cot_fewshot_boolean_expressions",
    "mgsm_en_cot_bn",
    "nq_open",
    "triviaqa",
    "truthfulqa_gen",
    "asdiv_cot_llama",
    "longbench_qasper",
    "babilong_qa1",
    "super_glue-multirc-t5-prompt",
)
"""Tasks with filters, several metrics, their own results, repeats, aggregation over the corpus, few shots."""


def write_task(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> str:
    """A task of one's own on local records; returns its name."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(task | settings))
    return "own"


ROWS = [{"question": f"What is {n} and 1?", "answer": n + 1} for n in range(6)]


def graded(folder: Path, say: str, **options: Any) -> list[float]:
    tasks = load_tasks({"source": "lm_eval", "path": str(folder), "tasks": ["own"], "disjoint": False, **options})
    samples = [tasks.sample("own", "heldout", i) for i in range(tasks.size("own", "heldout"))]
    return [tasks.grade("own", "heldout", s.index, say.format(s.answers[0])) for s in samples]


def filters(**patterns: str) -> list[dict[str, Any]]:
    first = {"function": "take_first"}
    return [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, first]}
        for name, pattern in patterns.items()
    ]


def test_answers_go_through_the_tasks_filters(tmp_path):
    strict = filters(strict=r"#### ([0-9]+)", loose=r"([0-9]+)")
    write_task(tmp_path, ROWS, filter_list=strict)
    assert graded(tmp_path, "It is so. #### {}") == [1.0] * 6
    assert graded(tmp_path, "It is {}.") == [0.0] * 6
    assert graded(tmp_path, "It is {}.", metrics={"own": "exact_match,loose"}) == [1.0] * 6
    with pytest.raises(ValueError, match=r"own has no metric 'f1'; it has exact_match,strict, exact_match,loose"):
        graded(tmp_path, "", metrics={"own": "f1"})
    with pytest.raises(ValueError, match="metrics names other, which tasks does not"):
        graded(tmp_path, "", metrics={"other": "f1"})


def test_repeats_are_one_greedy_answer_each_time(tmp_path):
    vote = [{"name": "vote", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}]
    write_task(tmp_path, ROWS, repeats=5, filter_list=vote)
    assert graded(tmp_path, "{}") == [1.0] * 6


def test_metrics_over_a_corpus_are_what_one_answer_gives(tmp_path):
    """BLEU and ChrF come as lm_eval has them, 0 to 100; an error rate, which is better when lower, is no score."""
    rows = [{"question": f"Say {n}.", "answer": "the quick brown fox jumps over the lazy dog"} for n in range(2)]
    metrics = [{"metric": m, "aggregation": m, "higher_is_better": m != "ter"} for m in ("ter", "bleu", "chrf")]
    write_task(tmp_path, rows, metric_list=metrics)
    assert graded(tmp_path, "{}") == pytest.approx([100.0] * 2)
    assert all(0 < score < 100 for score in graded(tmp_path, "the quick brown fox jumps"))
    assert graded(tmp_path, "{}", metrics={"own": "ter"}) == [0.0] * 2
    write_task(tmp_path, rows, metric_list=metrics[:1])
    with pytest.raises(ValueError, match="own: no metric that is better when higher gives a number .*it has ter,none"):
        graded(tmp_path, "{}")


def test_stops_and_limits_are_lm_evals(tmp_path):
    """All names of the limit; an empty stop is none; a line break in front of an answer ends it where it stops one."""
    from workers.tasks.prompt import cut

    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        write_task(tmp_path, ROWS, generation_kwargs={"until": ["\n", ""], name: 7})
        tasks = load_tasks({"source": "lm_eval", "path": str(tmp_path), "tasks": ["own"]})
        sample = tasks.sample("own", "train", 0)
        assert (sample.max_new_tokens, sample.stop) == (7, ("\n",))
        assert cut("\n4", sample.stop, sample.drops_breaks) == ""
        assert cut("4\n5", sample.stop, sample.drops_breaks) == "4"
    write_task(tmp_path, ROWS, generation_kwargs={"do_sample": False})
    sample = load_tasks({"source": "lm_eval", "path": str(tmp_path), "tasks": ["own"]}).sample("own", "train", 0)
    assert (sample.max_new_tokens, sample.stop) == (256, ("\n\n",))


def test_answers_of_tasks_with_choices_are_texts(tmp_path):
    write_task(tmp_path, ROWS, doc_to_choice=["no", "yes"], doc_to_target=1)
    tasks = load_tasks({"source": "lm_eval", "path": str(tmp_path), "tasks": ["own"], "disjoint": False})
    assert tasks.sample("own", "heldout", 0).answers == ("yes",)
    assert tasks.grade("own", "heldout", 0, "yes") == 1.0


def test_what_a_task_may_not_do(tmp_path):
    write_task(tmp_path, ROWS, unsafe_code=True)
    with pytest.raises(ValueError, match="own runs the code that a model writes: it is refused here"):
        graded(tmp_path, "")
    write_task(tmp_path, ROWS, doc_to_image="{{question}}")
    with pytest.raises(ValueError, match="own shows pictures or sounds"):
        graded(tmp_path, "")
    (tmp_path / "utils.py").write_text("raise SystemExit('a program is missing')\n")
    text = (
        (tmp_path / "own.yaml")
        .read_text()
        .replace("doc_to_image: '{{question}}'", "process_results: !function utils.f")
    )
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match="lm_eval could not load own: a program is missing"):
        graded(tmp_path, "")


def test_records_that_are_shuffled_as_they_are_loaded_are_the_same_in_every_process(tmp_path):
    (tmp_path / "utils.py").write_text(
        "import random\n\ndef process_docs(docs):\n    order = list(range(len(docs)))\n"
        "    random.shuffle(order)\n    return docs.select(order)\n"
    )
    write_task(tmp_path, ROWS)
    with (tmp_path / "own.yaml").open("a") as file:
        file.write("process_docs: !function utils.process_docs\n")
    orders = [[doc["answer"] for doc in HarnessTask("own", str(tmp_path)).docs] for _ in range(3)]
    assert orders[0] == orders[1] == orders[2] != [row["answer"] for row in ROWS]


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_and_scores_are_lm_evals_own(name):
    """On documents made from the task's template: all metrics of all filters, aggregated over them."""
    ours, theirs = compare(name)
    assert equal(ours, theirs), (ours, theirs)
    assert theirs


@pytest.mark.slow
def test_every_pipeline_that_needs_no_download():
    """One task of every pipeline that lm_eval has: the others differ in their language or their subject.

    All of them take five minutes; by default every third is compared, with NAMM_EVERY_PIPELINE=1 each.
    """
    every = 1 if os.environ.get("NAMM_EVERY_PIPELINE") else 3
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "tests.workers.harness_compare", str(every)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=os.environ | offline, timeout=590)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["different"] == {}
    assert len(found["equal"]) >= 200 // every and found["not zero"] >= 120 // every, found["not compared"]
