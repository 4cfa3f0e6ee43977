"""Each benchmark in its own format: prompts, limits, classes and grades as `lm_eval` has them."""

from __future__ import annotations

import importlib
import json
import zipfile
from pathlib import Path

import jinja2
import pytest
import yaml

from tests.workers.benchmark_files import ALL, infinitebench, longbench, plain, write_lines
from workers.tasks import OWN_METRIC, SPLITS
from workers.tasks.loading import load_tasks
from workers.tasks.sources.infinitebench import InfiniteBenchTasks
from workers.tasks.sources.longbench import FACTS


@pytest.fixture(scope="module")
def harness_folder() -> Path:
    """`lm_eval`'s own task definitions."""
    found = pytest.importorskip("lm_eval", reason='lm_eval is not installed: pip install "namm[benchmarks]"')
    return Path(found.__file__).parent / "tasks"


class Definition(yaml.SafeLoader):
    """A task's YAML, functions as their names."""


Definition.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def definition(file: Path) -> dict:
    return yaml.load(file.read_text(), Loader=Definition)


def test_longbench_is_all_21_tasks_as_lm_eval_has_them(tmp_path, harness_folder):
    """Prompts, metrics, limits, classes and references of every task, against lm_eval's own definitions."""
    for task in FACTS:
        write_lines(tmp_path / "data" / f"{task}.jsonl", [longbench(0)])
    tasks = load_tasks({"source": "longbench", "path": str(tmp_path), **ALL})
    assert len(tasks.tasks) == 21
    for task in tasks.tasks:
        theirs = definition(harness_folder / "longbench" / f"{task}.yaml")
        sample, record = tasks.sample(task, "heldout", 0), longbench(0)
        rendered = jinja2.Template(theirs["doc_to_text"], keep_trailing_newline=True)
        assert sample.prompt == rendered.render(**record, question=record["input"]), task
        assert sample.metric == theirs["metric_list"][1]["metric"], task
        assert sample.max_new_tokens == theirs["generation_kwargs"]["max_gen_toks"], task
        assert list(sample.stop) == theirs["generation_kwargs"]["until"], task
        assert sample.answers == ("Answer 0", "another")
        assert sample.classes == ("Answer", "Other")
        assert sample.relevant == ()
    chat = {task for task in tasks.tasks if not tasks.sample(task, "heldout", 0).chat}
    assert chat == {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}


def test_longbench_reads_the_hubs_archive(tmp_path):
    lines = "".join(json.dumps(longbench(n)) + "\n" for n in range(3))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/hotpotqa.jsonl", lines)
    options = {"source": "longbench", "tasks": ["hotpotqa"], "templates": {"hotpotqa": "{context}|{input}"}, **ALL}
    zipped = load_tasks({**options, "path": str(tmp_path)})
    assert zipped.size("hotpotqa", "validation") == 3
    write_lines(tmp_path / "plain" / "data" / "hotpotqa.jsonl", [longbench(n) for n in range(3)])
    plain = load_tasks({**options, "path": str(tmp_path / "plain")})
    assert [zipped.sample("hotpotqa", "heldout", i) for i in range(3)] == [
        plain.sample("hotpotqa", "heldout", i) for i in range(3)
    ]
    assert plain.sample("hotpotqa", "heldout", 0).prompt.startswith("Passage")
    (tmp_path / "data.zip").write_bytes((tmp_path / "data.zip").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"data\.zip: expected a zip file"):
        load_tasks({**options, "path": str(tmp_path)}).size("hotpotqa", "train")


INFINITE_FILES = {"longdialogue_qa_en", "longbook_qa_en", "longbook_sum_en", "longbook_choice_en"}


def test_infinitebench_is_as_lm_eval_has_it(tmp_path, harness_folder):
    """Prompts, limits and grading of all tasks, against lm_eval's own definitions and functions."""
    theirs_of = importlib.import_module("lm_eval.tasks.infinitebench.utils")
    choice = {"answer": ["second"], "options": ["first", "second", "third", "fourth"]}
    records = {task: infinitebench(0) for task in InfiniteBenchTasks.known}
    records |= {task: infinitebench(0, **choice) for task in ("code_debug", "longbook_choice_en")}
    for task, record in records.items():
        write_lines(tmp_path / f"{task + 'g' if task in INFINITE_FILES else task}.jsonl", [record])
    tasks = load_tasks({"source": "infinitebench", "path": str(tmp_path), **ALL})
    assert len(tasks.tasks) == 11
    common = definition(harness_folder / "infinitebench" / "_infinitebench_common_yaml")
    for task in tasks.tasks:
        theirs = common | definition(harness_folder / "infinitebench" / f"infinitebench_{task}.yaml")
        sample, record, text = tasks.sample(task, "heldout", 0), records[task], theirs["doc_to_text"]
        if text.startswith("utils."):
            expected = getattr(theirs_of, text.removeprefix("utils."))(record)
        else:
            expected = jinja2.Template(text).render(**record)
        assert sample.prompt == theirs.get("description", "") + expected, task
        assert sample.max_new_tokens == theirs["generation_kwargs"]["max_gen_toks"], task
        assert list(sample.stop) == theirs["generation_kwargs"]["until"], task
        assert sample.answers == (("B",) if "options" in record and record["options"] else ("0",))
        assert sample.metric == OWN_METRIC
        assert tasks.grade(task, "heldout", 0, f" {sample.answers[0]}") == 1.0, task
        assert tasks.grade(task, "heldout", 0, "nothing of it") == 0.0, task


def test_infinitebench_takes_numbers_as_answers(tmp_path):
    write_lines(tmp_path / "math_find.jsonl", [infinitebench(0, answer=12.5, options="")])
    pytest.importorskip("lm_eval", reason='lm_eval is not installed: pip install "namm[benchmarks]"')
    tasks = load_tasks({"source": "infinitebench", "path": str(tmp_path), "tasks": ["math_find"], **ALL})
    assert tasks.sample("math_find", "train", 0).answers == ("12.5",)
    assert tasks.grade("math_find", "train", 0, "It is 12.5 then") == 1.0


@pytest.fixture
def choubun(tmp_path) -> Path:
    """A folder in ChouBun's layout: a parquet file, and its code repository's prompt files."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    rows = [
        {
            "context": f"東京は日本の首都である。{n}",
            "input": "首都はどこですか？",
            "answers": ["東京"],
            "all_classes": None,
        }
        for n in range(4)
    ]
    file = tmp_path / "wiki_qa" / "test-00000-of-00001.parquet"
    file.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "dataset2prompt.json").write_text('{"wiki_qa": "文書：{context}\\n質問：{input}\\n回答："}')
    (tmp_path / "config" / "dataset2maxlen.json").write_text('{"wiki_qa": 64}')
    return tmp_path


def test_choubun_reads_its_own_prompt_files(choubun):
    tasks = load_tasks({"source": "choubun", "path": str(choubun), "tasks": ["wiki_qa"], **ALL})
    sample = tasks.sample("wiki_qa", "heldout", 0)
    assert sample.prompt.startswith("文書：東京は日本の首都である。")
    assert sample.prompt.endswith("\n質問：首都はどこですか？\n回答：")
    assert (sample.metric, sample.max_new_tokens, sample.completion) == ("qa_f1_ja_score", 64, "東京")
    moved = choubun / "elsewhere"
    (choubun / "config").rename(moved)
    with pytest.raises(ValueError, match=r"config/dataset2prompt\.json or dataset2prompt\.json.*tasks\.prompts"):
        load_tasks({"source": "choubun", "path": str(choubun), "tasks": ["wiki_qa"]}).fingerprint("wiki_qa")
    given = load_tasks({"source": "choubun", "path": str(choubun), "tasks": ["wiki_qa"], "prompts": str(moved), **ALL})
    assert given.sample("wiki_qa", "heldout", 0) == sample


def test_choubun_says_what_is_damaged(choubun):
    (choubun / "config" / "dataset2maxlen.json").write_text('{\n"wiki_qa": 64,,\n}')
    tasks = load_tasks({"source": "choubun", "path": str(choubun), "tasks": ["wiki_qa"]})
    with pytest.raises(ValueError, match=r"dataset2maxlen\.json, line 2: expected one entry a task"):
        tasks.fingerprint("wiki_qa")
    file = choubun / "wiki_qa" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet: expected a parquet file"):
        load_tasks({"source": "choubun", "path": str(choubun)}).size("wiki_qa", "train")


def test_ruler_files(tmp_path):
    needle = {"index": 0, "input": "Some magic numbers.\nWhat are they?", "outputs": ["1234567", "89"], "length": 40}
    write_lines(tmp_path / "niah_multivalue" / "validation.jsonl", [needle | {"answer_prefix": " They are"}])
    write_lines(tmp_path / "qa_1" / "validation.jsonl", [needle])
    tasks = load_tasks({"source": "ruler", "path": str(tmp_path), "tasks": ["niah_multivalue", "qa_1"], **ALL})
    sample = tasks.sample("niah_multivalue", "heldout", 0)
    assert sample.prompt == "Some magic numbers.\nWhat are they? They are"
    assert (sample.answers, sample.max_new_tokens) == (("1234567", "89"), 128)
    assert (sample.metric, tasks.sample("qa_1", "train", 0).metric) == ("string_match_all", "string_match_part")


def test_any_task_of_lm_eval_by_its_name(tmp_path, harness_folder):
    """A definition of one's own on local files: its description, prompt, limit, stop and metric."""
    data = write_lines(tmp_path / "rows.jsonl", [{"q": f"{n} and 1?", "a": str(n + 1)} for n in range(12)])
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "description": "Add.\n\n",
        "doc_to_text": "{{q}} =",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 5},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
    choices = {**task, "task": "choices", "output_type": "multiple_choice", "doc_to_choice": ["1", "2"]}
    (tmp_path / "choices.yaml").write_text(yaml.safe_dump({**choices, "doc_to_target": 0, "metric_list": []}))
    tasks = load_tasks({"source": "lm_eval", "path": str(tmp_path), "tasks": ["sums"]})
    assert sum(tasks.size("sums", split) for split in SPLITS) == 12
    sample = tasks.sample("sums", "train", 0)
    number = int(sample.answers[0])
    assert sample.prompt == f"Add.\n\n{number - 1} and 1? ="
    assert (sample.max_new_tokens, sample.stop) == (5, ("\n", "."))
    assert tasks.grade("sums", "train", 0, str(number)) == 1.0
    assert tasks.grade("sums", "train", 0, "none") == 0.0
    with pytest.raises(ValueError, match="choices is no generation task"):
        load_tasks({"source": "lm_eval", "path": str(tmp_path), "tasks": ["choices"]}).size("choices", "train")
    with pytest.raises(ValueError, match="lm_eval has no task 'products'"):
        load_tasks({"source": "lm_eval", "path": str(tmp_path), "tasks": ["products"]}).size("products", "train")
    data.write_text('{"q": 1\n')
    with pytest.raises(ValueError, match="lm_eval could not load sums"):
        load_tasks({"source": "lm_eval", "path": str(tmp_path), "tasks": ["sums"]}).size("sums", "train")


def test_plain_files(tmp_path):
    write_lines(tmp_path / "facts.jsonl", [plain(n, all_classes=["1", "2"], stop=["."]) for n in range(3)])
    tasks = load_tasks({"source": "jsonl", "path": str(tmp_path), **ALL})
    assert tasks.tasks == ("facts",)
    sample = tasks.sample("facts", "heldout", 0)
    assert sample.prompt == f"Fact {sample.answers[0]}.\n\nWhich?"
    assert (sample.metric, sample.max_new_tokens, sample.classes, sample.stop) == (
        "exact_match",
        3,
        ("1", "2"),
        (".",),
    )
    changed = {"templates": {"facts": "{question} {context}"}, "max_new_tokens": {"facts": 9}, "stop": {"facts": []}}
    other = load_tasks({"source": "jsonl", "path": str(tmp_path), **ALL, **changed}).sample("facts", "heldout", 0)
    assert other.prompt == f"Which? Fact {sample.answers[0]}."
    assert (other.max_new_tokens, other.stop) == (9, ())
    with pytest.raises(
        ValueError, match=r"tasks\.template: the records have no 'passage'; they have context, question"
    ):
        load_tasks({"source": "jsonl", "path": str(tmp_path), "template": "{passage}"}).sample("facts", "train", 0)
