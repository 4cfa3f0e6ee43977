"""Bad input: one clear line, exit status 2, nothing half-written. And the small commands."""

from __future__ import annotations

import json
import os
import socket
from contextlib import closing

import pytest

from orchestrator import spec
from orchestrator.storage.journal import Lock


def refused(process, tmp_path) -> str:
    """The one line that a refused command printed; nothing of a run may be left."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    lines = [line for line in errors.splitlines() if line.startswith("namm: ")]
    assert len(lines) == 1 and "Traceback" not in errors, errors
    assert not (tmp_path / "runs" / "smoke" / "job.yaml").exists()
    return lines[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"generatons": 3}, "unknown key 'generatons'; did you mean 'generations'"),
        ({"memory": {"update_intervall": 64}}, "did you mean 'update_interval'"),
        ({"train": ["residense"], "heldout": []}, "unknown task 'residense'"),
        ({"tasks": {"source": "longbank"}}, "tasks.source: unknown 'longbank'"),
        ({"model": {"path": "models/none"}}, "model folder models/none does not exist"),
        ({"generations": "many"}, "generations: expected int, found 'many'"),
        ({"search": {"variant": "diagnal"}}, "did you mean 'diagonal'"),
        ({"heldout": ["residence"]}, "residence: in train and in heldout"),
        ({"memory": {"update_interval": 40}}, "must be a multiple of hop"),
    ],
)
def test_bad_settings(namm, job_file, tmp_path, changes, message):
    assert message in refused(namm("evolve", job_file(**changes)), tmp_path)


def test_more_than_a_benchmark_has(namm, job_file, tmp_path):
    """A fixed list of samples ends, and does not say where its answers stand."""
    record = {"question": "Where is Anna?", "answers": ["Paris"], "metric": "exact_match", "max_new_tokens": 1}
    lines = (json.dumps({"context": f"Text: Anna:Paris. {n}", **record}) + "\n" for n in range(40))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.jsonl").write_text("".join(lines))
    job = {"tasks": {"source": "jsonl", "path": str(tmp_path / "data")}, "train": ["own"], "heldout": []}
    policies = ["full", "namm"]
    line = refused(namm("evolve", job_file(**job, evaluation={"samples": 41, "policies": policies})), tmp_path)
    assert "evaluation.samples asks for more heldout samples than the" in line and "that own has" in line
    line = refused(namm("evolve", job_file(**job, validation={"samples": 41})), tmp_path)
    assert "oracle needs tasks that say where their answers stand" in line
    few = {"evaluation": {"samples": 2, "policies": policies}}
    line = refused(namm("evolve", job_file(**job, **few, validation={"samples": 41})), tmp_path)
    assert "validation.samples asks for more validation samples than the" in line


def test_addresses_where_nothing_answers(namm, job_file, tmp_path):
    with socket.socket() as held:  # bound, not listening: nothing else can answer there
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        line = refused(namm("evolve", job_file(redis_url=f"redis://:secret@127.0.0.1:{port}/0")), tmp_path)
        assert "did not answer within" in line and "secret" not in line
        line = refused(namm("evolve", job_file(mlflow_uri=f"http://127.0.0.1:{port}")), tmp_path)
        assert "did not answer within" in line and "start the server" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_run_folder(namm, job_file, tmp_path):
    (tmp_path / "runs").mkdir(mode=0o500)
    assert "cannot be written" in refused(namm("evolve", job_file()), tmp_path)


def test_a_file_where_the_run_folder_should_be(namm, job_file, tmp_path):
    (tmp_path / "runs").write_text("in the way")
    assert "cannot be written" in refused(namm("evolve", job_file()), tmp_path)


def test_what_does_not_exist(namm, tmp_path):
    assert "cannot be read" in refused(namm("evolve", "nowhere.yaml"), tmp_path)
    assert "no run 'smoke'" in refused(namm("evolve", "--resume", "smoke"), tmp_path)
    assert "no run 'smoke'" in refused(namm("report", "smoke"), tmp_path)
    assert "run a job first" in refused(namm("ui"), tmp_path)


def test_overrides_and_the_saved_job(smoke, tmp_path):
    import yaml

    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(smoke))
    job = spec.read(path, ["search.sigma0=1e-2", "generations=7", "workers.count=3", "name=other"])
    assert (job.search.sigma0, job.generations, job.workers.count, job.name) == (0.01, 7, 3, "other")
    spec.write(job, tmp_path / "again.yaml")
    assert spec.read(tmp_path / "again.yaml") == job
    # Where it is computed does not change what is computed; what is computed does.
    assert job.digest() == spec.read(path, ["search.sigma0=0.01", "workers.count=1"]).digest()
    assert job.digest() != spec.read(path, ["search.sigma0=0.02"]).digest()
    with pytest.raises(ValueError, match="is no override"):
        spec.read(path, ["generations"])


def test_a_search_and_policies_with_options_are_read_back_as_they_were_written(smoke, tmp_path):
    import yaml

    path = tmp_path / "job.yaml"
    policies = ["full", "namm", {"name": "snapkv", "window": 64}, {"name": "snapkv", "window": 64, "budget": 0.2}]
    path.write_text(yaml.safe_dump({**smoke, "evaluation": {"policies": policies}}))
    job = spec.read(path, ["search={algorithm: openai_es, population: 8, learning_rate: 1e-2}"])
    assert [entry.label for entry in job.evaluation.policies] == [
        "full",
        "namm",
        "snapkv(window=64)",
        "snapkv(window=64, budget=0.2)",
    ]
    assert (job.search.algorithm, job.search.population, job.search.learning_rate) == ("openai_es", 8, 0.01)
    spec.write(job, tmp_path / "again.yaml")
    assert spec.read(tmp_path / "again.yaml") == job
    assert yaml.safe_load((tmp_path / "again.yaml").read_text())["evaluation"]["policies"] == policies
    # Where a plug-in stands, and what the last table compares, decides no score; the algorithm does.
    assert job.digest() == spec.read(tmp_path / "again.yaml", ["evaluation.policies=[full, namm]"]).digest()
    assert job.digest() != spec.read(path, ["search.population=8"]).digest()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("validation.every=0", "validation: every must be at least 1, not 0"),
        ("workers.count=0", "workers: count must be at least 1, not 0"),
        ("generations=0", "generations must be at least 1, not 0"),
        ("fitness.samples=0", "fitness: samples must be at least 1, not 0"),
        ("evaluation.policies=[full, full]", "policies names full twice"),
        ("evaluation.policies=[full, {window: 3}]", r"policies\[1\]: expected a policy's name, or a mapping such as"),
        ("evaluation.policies=[{name: snapkv, budget: 2}]", r"policies\[0\]: budget must lie between 0 and 1"),
        ("search.algorithm=openai", "unknown search 'openai'; did you mean 'openai_es'"),
        ("search.learning_rate=1", "learning_rate is an option of openai_es; cma_es has"),
        ("name=20241128_0101", "name: expected text, found 202411280101, as YAML reads it: put the text in quotes"),
        ("name=2024-11-28", "name: expected text, found datetime.date.2024, 11, 28., as YAML reads it: put"),
        ("name=on", "name: expected text, found True, as YAML reads it: put the text in quotes"),
        (f"name={'x' * 300}", "name has 300 bytes, at most 200 are allowed: 'xxxxxxxxxxxxxxxxxxxx'"),
        (f"name={'ü' * 150}", "name has 300 bytes, at most 200 are allowed"),
        ('name="a\\0b"', "name must be a plain folder name, not"),
        ("name=a/b", "name must be a plain folder name, not 'a/b'"),
        ("stages=[{train: [topic], name: 1}]", r"stages.0..name: expected text, found 1, as YAML reads it"),
        (f"stages=[{{train: [residence, topic], name: {'x' * 300}}}]", "stages: name has 300 bytes"),
        ("mlflow_experiment=7", "mlflow_experiment: expected text, found 7, as YAML reads it"),
        ("mlflow_experiment=' '", "mlflow_experiment must have 1 to 500 letters"),
    ],
)
def test_a_setting_out_of_range_is_one_clear_line(smoke, tmp_path, override, message):
    import yaml

    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(smoke))
    with pytest.raises(ValueError, match=message) as caught:
        spec.read(path, [override])
    assert str(caught.value).startswith("job.yaml") and "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["name=@best", "name=`x`", "train=[a", "name=a: b: c", "name=%x", "name='"])
def test_a_value_that_is_no_yaml_is_one_line_that_says_how_to_write_it(smoke, tmp_path, override):
    import yaml

    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(smoke))
    with pytest.raises(ValueError, match="is no YAML: put its value in quotes, twice for the shell") as caught:
        spec.read(path, [override])
    assert "\n" not in str(caught.value)


def test_runs_lists_what_is_there(namm, tmp_path, smoke):
    import yaml

    for name in ("first", "second"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "job.yaml").write_text(yaml.safe_dump({**smoke, "name": name}))
    row = {"mean": 0.5, "kept": 1.0}
    result = {"policies": {"full": row, "namm": {"mean": 0.625, "kept": 0.25}}, "generations": 9, "seed": 4}
    (tmp_path / "runs" / "first" / "result.json").write_text(json.dumps(result))
    printed, errors = (process := namm("runs")).communicate(timeout=120)
    assert process.returncode == 0, errors
    first, second = (line.split() for line in printed.splitlines() if line.startswith(("first", "second")))
    assert first[1] == "finished" and first[-3:] == ["0.625", "0.25", "0.500"]
    assert second[1] == "interrupted" and second[-1] == "0/3"
    with closing(Lock(tmp_path / "runs" / "second")):
        printed, _ = namm("runs").communicate(timeout=120)
    assert "running" in printed and "interrupted" not in printed


@pytest.mark.parametrize("terminal", ["latin-1", "ascii", "utf-8"])
def test_a_terminal_of_any_encoding_shows_the_table(namm, tmp_path, smoke, terminal):
    """A run that took hours is not lost over a letter, and what is kept in files is UTF-8 for everybody."""
    folder = tmp_path / "runs" / "первый"
    folder.mkdir(parents=True)
    text = json.dumps({**smoke, "name": "первый"}, ensure_ascii=False)
    (folder / "job.yaml").write_text(text, "utf-8")
    row = {"mean": 0.5, "low": 0.4, "high": 0.6, "kept": 1.0, "kinds": {"тема": 0.5}}
    result = {"policies": {"full": row, "namm": row}, "generations": 9, "seed": 4, "name": "первый"}
    (folder / "result.json").write_text(json.dumps(result, ensure_ascii=False), "utf-8")
    env = {"PYTHONIOENCODING": terminal, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = namm("runs", env=env, encoding=terminal)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert ("первый" if terminal == "utf-8" else "??????") in printed and "0.500" in printed
    process = namm("evolve", "runs/первый/job.yaml", "--dry-run", env=env, encoding=terminal)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "Plan of " in printed, errors


def test_settings_hold_no_torch():
    """A head node reads jobs without it."""
    import subprocess
    import sys

    code = "import sys, orchestrator.spec, orchestrator.evolution.loop\n"
    code += "import orchestrator.storage.journal, orchestrator.dispatch.dispatcher\n"
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
