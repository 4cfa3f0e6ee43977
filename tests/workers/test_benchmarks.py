"""Benchmarks on small files in their own formats: prompts as `lm_eval` renders them, splits, and what damage says."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jinja2
import numpy as np
import pytest
import yaml

from namm_core import NammConfig
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.tasks import OWN_METRIC, SPLITS
from workers.tasks.loading import load_tasks
from workers.tasks.longbench_files import TEMPLATE, write
from workers.tasks.sources.infinitebench import InfiniteBenchTasks
from workers.tasks.sources.longbench import FACTS
from workers.tasks.sources.recall import RecallConfig
from workers.unit import PolicySpec, SampleRef, Unit

ALL = {"disjoint": False}
ROOT = Path(__file__).parent.parent.parent


def write_lines(file: Path, records: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return file


def longbench(number: int, **changes) -> dict:
    """A record in LongBench's format."""
    return {
        "input": f"What is {{{{x}}}} number {number}?",
        "context": f"Passage {number}\n一段 text of & <marks> {number}.",
        "answers": [f"Answer {number}", "another"],
        "length": 9,
        "dataset": "a task",
        "language": "en",
        "all_classes": ["Answer", "Other"],
        "_id": f"{number:048x}",
    } | changes


def infinitebench(number: int, **changes) -> dict:
    """A record in InfiniteBench's format."""
    return {
        "id": number,
        "context": f"A book {number}. def func_{number}(x): return x",
        "input": f"What is func_{number}(-7)? The largest number of the list:",
        "answer": [f"{number}"],
        "options": [],
    } | changes


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


def plain(number: int, **changes) -> dict:
    """A record of the project's own format."""
    return {
        "context": f"Fact {number}.",
        "question": "Which?",
        "answers": [str(number)],
        "metric": "exact_match",
        "max_new_tokens": 3,
    } | changes


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


@pytest.mark.parametrize(
    ("source", "name", "good"),
    [
        ("longbench", "data/trec.jsonl", longbench),
        ("infinitebench", "passkey.jsonl", infinitebench),
        ("choubun", "wiki_qa.jsonl", longbench),
        ("ruler", "vt/validation.jsonl", lambda n: {"input": f"{n}", "outputs": ["1"]}),
        ("jsonl", "facts.jsonl", plain),
    ],
)
def test_damage_names_file_line_and_what_was_expected(tmp_path, source, name, good):
    file = write_lines(tmp_path / name, [good(n) for n in range(3)])
    task = file.parent.name if source == "ruler" else file.stem
    whole = file.read_bytes()

    def said() -> str:
        with pytest.raises(ValueError) as error:
            load_tasks({"source": source, "path": str(tmp_path)}).sample(task, "train", 0)
        assert "\n" not in str(error.value)
        return str(error.value)

    file.write_bytes(whole[: len(whole) * 5 // 6])
    assert f"{file}, line 3: expected one JSON object" in said()
    file.write_bytes(whole + b"\xff\xfe{}\n")
    assert f"{file}, line 4: expected one JSON object" in said()
    file.write_bytes(whole + b"[1]\n")
    assert f"{file}, line 4: expected one JSON object, found list" in said()
    key = "input" if "input" in good(0) else "question"
    write_lines(file, [good(0), {k: v for k, v in good(1).items() if k != key}])
    assert f"{file}, line 2: expected the key '{key}' (str)" in said()
    write_lines(file, [good(0), good(1) | {key: {}}])
    assert f"{file}, line 2: expected '{key}' to be str, found dict" in said()
    file.write_bytes(b"\n")
    assert f"{file}: is empty" in said()
    file.unlink()
    assert f"holds no {name}" in said() or "holds no *.jsonl" in said() or f"or {name}" in said()


def test_without_network_one_line_says_what_to_fetch(tmp_path):
    """In a process that may not use the network, whose cache is empty."""
    program = (
        "from workers.tasks.loading import load_tasks\n"
        "for source, task in (('longbench', 'trec'), ('infinitebench', 'passkey'), ('choubun', 'wiki_qa')):\n"
        "    try:\n"
        "        load_tasks({'source': source, 'tasks': [task]}).sample(task, 'train', 0)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, name, file in zip(
        lines,
        ("zai-org/LongBench", "xinrongzhang2022/InfiniteBench", "SakanaAI/ChouBun"),
        ("data.zip", "passkey.jsonl", "wiki_qa/test-00000-of-00001.parquet"),
        strict=True,
    ):
        assert f"`hf download {name} --repo-type dataset`" in line
        assert str(tmp_path) in line and file in line


def test_splits_are_disjoint_by_document_and_do_not_depend_on_order(tmp_path):
    records = [plain(n // 3, question=f"Question {n}?") for n in range(300)]
    write_lines(tmp_path / "a" / "facts.jsonl", records)
    write_lines(tmp_path / "b" / "facts.jsonl", records[::-1])
    forwards, backwards = (load_tasks({"source": "jsonl", "path": str(tmp_path / name)}) for name in "ab")
    contexts = {}
    for split, share in zip(SPLITS, (0.5, 0.2, 0.3), strict=True):
        size = forwards.size("facts", split)
        assert size == pytest.approx(300 * share, abs=45)
        samples = [forwards.sample("facts", split, i) for i in range(size)]
        assert samples == [backwards.sample("facts", split, i) for i in range(size)]
        assert len({s.prompt for s in samples}) == size
        contexts[split] = {s.answers for s in samples}
    assert sum(map(len, contexts.values())) == 100 == len(set.union(*contexts.values()))


def test_training_samples_never_end_and_others_do(tmp_path):
    write_lines(tmp_path / "facts.jsonl", [plain(n) for n in range(40)])
    tasks = load_tasks({"source": "jsonl", "path": str(tmp_path)})
    size = tasks.size("facts", "train")
    passes = [[tasks.sample("facts", "train", p * size + i).prompt for i in range(size)] for p in (0, 1, 400)]
    assert all(len(set(one)) == size for one in passes)  # without replacement
    assert set(passes[0]) == set(passes[1]) == set(passes[2])
    assert passes[0] != passes[1] != passes[2]
    for split in ("validation", "heldout"):
        size = tasks.size("facts", split)
        with pytest.raises(ValueError, match=f"facts has {size} {split} samples: there is no number {size}"):
            tasks.sample("facts", split, size)
    nothing = load_tasks({"source": "jsonl", "path": str(tmp_path), "fractions": [0.0, 0.5, 0.5]})
    with pytest.raises(ValueError, match=r"facts: none of its 40 samples is for train: raise .* tasks\.fractions"):
        nothing.sample("facts", "train", 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"source": "longbench", "tasks": ["trek"]}, "unknown task 'trek'; did you mean 'trec'"),
        ({"source": "ruler", "paht": "."}, "unknown key 'paht'; did you mean 'path'"),
        ({"source": "ruler", "fractions": [0.5, 0.5]}, "three shares that sum to 1"),
        ({"source": "ruler", "tasks": ["vt"], "stop": {"vf": ["."]}}, "stop names vf, which tasks does not"),
        ({"source": "longbench", "metrics": {"mine": "qa_f2"}}, "unknown metric 'qa_f2' of mine"),
        ({"source": "lm_eval"}, "name the tasks of lm_eval"),
        ({"source": "several", "sets": {"a": {"source": "rular"}}}, "sets.a: tasks.source: unknown 'rular'"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(config, message):
    with pytest.raises(ValueError, match=message):
        load_tasks(config)


RECALL = ("residence", "passkey", "topic")


def recall_in_longbench_format(folder: Path) -> dict:
    """Three tasks in LongBench's format that the small model can answer, and the source's options."""
    write(folder, RecallConfig(tokens=264, facts=6, topic_words=12, kinds=RECALL), samples=8)
    return {
        "source": "longbench",
        "path": str(folder),
        "tasks": list(RECALL),
        "templates": dict.fromkeys(RECALL, TEMPLATE),
        "max_new_tokens": dict.fromkeys(RECALL, 6),
        "stop": dict.fromkeys(RECALL, ["\n"]),
        **ALL,
    }


def test_the_small_model_answers_tasks_in_longbench_format(tmp_path, small_model):
    """From file to score; several sources in one set; a set that grades by itself."""
    sets = {"own": recall_in_longbench_format(tmp_path / "longbench")}
    refs = [SampleRef(f"own/{task}", "heldout", i) for task in RECALL for i in range(4)]
    if importlib.util.find_spec("lm_eval"):
        write_lines(tmp_path / "infinite" / "passkey.jsonl", [infinitebench(0)])
        sets["infinite"] = {"source": "infinitebench", "path": str(tmp_path / "infinite"), "tasks": ["passkey"], **ALL}
        refs.append(SampleRef("infinite/passkey", "heldout", 0))
    model = ModelConfig(str(small_model), ntk_alpha=8)
    config = EvaluatorConfig(model, {"source": "several", "sets": sets}, NammConfig(update_interval=64))
    evaluator = Evaluator(config)
    assert evaluator.prepare(refs) == len(refs)
    assert evaluator.prepare(refs) == 0
    results = [evaluator.evaluate(Unit((PolicySpec("full"),), (ref,)))[0][0] for ref in refs]
    for task in RECALL:
        assert np.mean([r.score for r in results if r.task == f"own/{task}"]) >= 0.2
    assert all(r.tokens == 264 for r in results if r.task.startswith("own/"))
    assert results[0].prediction == evaluator.target.tasks.sample(*refs[0]).answers[0]  # not what it would go on with
    with pytest.raises(ValueError, match="oracle: these tasks do not say where"):
        evaluator.evaluate(Unit((PolicySpec("oracle"),), refs[:1]))
