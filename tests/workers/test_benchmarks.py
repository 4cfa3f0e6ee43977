"""All benchmarks alike: what damaged files say, how samples are split, and the way from a file to a score."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from namm_core import NammConfig
from tests.workers.benchmark_files import ALL, infinitebench, longbench, plain, write_lines
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.tasks import SPLITS
from workers.tasks.loading import load_tasks
from workers.tasks.longbench_files import TEMPLATE, write
from workers.tasks.sources.recall import RecallConfig
from workers.unit import PolicySpec, SampleRef, Unit

ROOT = Path(__file__).parent.parent.parent


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
