"""Which run is meant: by name, folder, file or URL; and one line that says what to do where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.storage import run_folder


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two evolution runs, `done` and `young`, and an evaluation, `curve`."""
    runs = tmp_path / "runs"
    for name in ("done", "young"):
        (runs / name).mkdir(parents=True)
        (runs / name / "job.yaml").write_text(f"name: {name}\n")
    (runs / "done" / "namm").mkdir()
    (runs / "done" / "namm" / "model.safetensors").write_bytes(b"")
    (runs / "curve").mkdir()
    (runs / "curve" / "evaluate.yaml").write_text("job: {}\n")
    return runs


def test_a_run_by_name_and_by_folder(runs):
    assert run_folder.find("done", runs) == run_folder.find(str(runs / "done")) == runs / "done"
    with pytest.raises(ValueError, match="no run 'dome' in .*; known: done, young$"):
        run_folder.find("dome", runs)
    with pytest.raises(ValueError, match="no run 'curve'"):  # an evaluation is no evolution run
        run_folder.find("curve", runs)


def test_an_evaluation_by_name_and_by_folder(runs):
    assert run_folder.find_evaluation("curve", runs) == run_folder.find_evaluation(str(runs / "curve"))
    assert run_folder.find_evaluation("curve", runs) == runs / "curve"
    assert run_folder.find_evaluation("done", runs) is None


def test_a_job_by_file_name_and_url(runs, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("name: own\n")
    assert run_folder.job_file(str(own), runs) == own
    assert run_folder.job_file("done", runs) == runs / "done" / "job.yaml"
    assert run_folder.job_file("gone.yaml", runs) == Path("gone.yaml")  # its reader says that it is not there
    assert run_folder.job_text(str(own), runs) == run_folder.JobText("name: own\n", str(own))
    assert run_folder.job_text("done", runs).text == "name: done\n"
    url = f"file://{runs}/young"
    assert run_folder.job_text(url, runs) == run_folder.JobText("name: young\n", url, url)
    with pytest.raises(ValueError, match="^no run is kept at file://"):
        run_folder.job_text(f"file://{tmp_path}/nothing", runs)


def test_the_memory_of_a_run(runs, tmp_path):
    memory = runs / "done" / "namm"
    assert run_folder.own_memory("done", "", runs) == memory
    job = tmp_path / "a.yaml"
    job.write_text("name: done\n")
    assert run_folder.own_memory(str(job), "done", runs) == memory
    with pytest.raises(ValueError, match="young/namm does not exist: evolve a NAMM first"):
        run_folder.own_memory("young", "young", runs)


def test_a_saved_memory_and_the_job_beside_it(runs, tmp_path):
    memory = runs / "done" / "namm"
    assert run_folder.saved_memory("done", runs) == run_folder.saved_memory(str(memory), runs) == memory
    assert run_folder.job_beside(memory) == (runs / "done" / "job.yaml").resolve()
    with pytest.raises(ValueError, match="young holds no memory yet: finish it with namm evolve --resume young"):
        run_folder.saved_memory("young", runs)
    with pytest.raises(ValueError, match="no run and no saved NAMM 'nobody'"):
        run_folder.saved_memory("nobody", runs)
    with pytest.raises(ValueError, match="says nothing of a model and tasks: give --config JOB.yaml"):
        run_folder.job_beside(tmp_path / "alone" / "namm")
