"""Where runs are kept, and which one a person means by a name, a folder or a URL.

Knows which files a run folder has, and nothing of what they say: a job's text is for `spec.parse`.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from workers.masking import masked_url

RUNS = Path(os.environ.get("NAMM_RUNS", "runs"))
"""Where run folders are: NAMM_RUNS (on a cluster, where a job's own folder does not last), else `runs` here."""
JOB = "job.yaml"
"""The job, in the folder of an evolution run."""
EVALUATION = "evaluate.yaml"
"""What was asked for, in the folder of an evaluation."""
MEMORY = "namm"
"""Folder of the NAMM that a run evolved."""
STORY = "story.html"
"""The page that shows, generation by generation, what a run's memory holds."""
WEIGHTS = "model.safetensors"
"""The file by which a folder is known to hold a saved NAMM."""


@dataclass(frozen=True)
class JobText:
    """A job as it was found, not read yet."""

    text: str
    """YAML."""
    source: str
    """Where it was found, for messages; no credentials."""
    storage: str | None = None
    """The URL that it was fetched from: where its run goes on being kept. None for a local file."""


def again(folder: Path) -> str:
    """The command that runs the job of a run folder again, under another name."""
    return f"namm evolve {shlex.quote(str(folder / JOB))} {shlex.quote(f'name={folder.name}-again')}"


def find(name: str, runs: Path = RUNS) -> Path:
    """The folder of an evolution run: by its path, or by its name in `runs`. Raises ValueError if there is none."""
    for folder in (Path(name), runs / name):
        if (folder / JOB).is_file():
            return folder
    known = ", ".join(sorted(path.parent.name for path in runs.glob(f"*/{JOB}"))) or "none"
    raise ValueError(f"no run {name!r} in {runs}/; known: {known}")


def find_evaluation(name: str, runs: Path = RUNS) -> Path | None:
    """The folder of an evaluation: by its path, or by its name in `runs`; None if there is none."""
    return next((folder for folder in (Path(name), runs / name) if (folder / EVALUATION).is_file()), None)


def job_file(name: str, runs: Path = RUNS) -> Path:
    """A job file: by its path, or that of the run `name`. Raises ValueError if there is neither.

    A path that ends like a YAML file is returned even if nothing is there: who reads it says so better.
    """
    path = Path(name)
    return path if path.is_file() or path.suffix in (".yaml", ".yml") else find(name, runs) / JOB


def job_text(name: str, runs: Path = RUNS) -> JobText:
    """The job that goes by `name`: a job file, a run's name or folder, or the storage URL that a run is kept at.

    Raises ValueError, one line, if there is none or it cannot be read.
    """
    if "://" in name:
        from orchestrator.storage import mirror  # fsspec, which only a URL needs

        data = mirror.fetch(name, JOB)
        if data is None:
            raise ValueError(f"no run is kept at {masked_url(name)}")
        return JobText(data.decode(), masked_url(name), name)
    path = Path(name) if Path(name).is_file() else find(name, runs) / JOB
    try:
        return JobText(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text in UTF-8 (byte {error.start})") from None


def own_memory(name: str, job: str, runs: Path = RUNS) -> Path:
    """The folder of the NAMM that a run evolved.

    name: a job file, or the run by name or folder; job: the job's name, by which a job file's run is found.
    Raises ValueError if the run has none yet.
    """
    folder = (runs / job if Path(name).is_file() else find(name, runs)) / MEMORY
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: evolve a NAMM first (namm evolve), or name a saved one with --namm")
    return folder


def saved_memory(name: str, runs: Path = RUNS) -> Path:
    """The folder of a saved NAMM: by its own path, or as the one of a run by name or folder.

    Raises ValueError if there is no such folder, or no NAMM in it yet.
    """
    folder = next((folder for folder in (Path(name), runs / name) if folder.is_dir()), None)
    if folder is None:
        raise ValueError(f"no run and no saved NAMM {name!r}: give a run's name, or a folder with {WEIGHTS}")
    found = next((place for place in (folder, folder / MEMORY) if (place / WEIGHTS).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} holds no memory yet: finish it with namm evolve --resume {folder.name}")
    return found


def job_beside(memory: Path) -> Path:
    """The job file of the run that the saved NAMM in `memory` belongs to. Raises ValueError if there is none."""
    path = memory.resolve().parent / JOB
    if not path.is_file():
        raise ValueError(f"{memory} says nothing of a model and tasks: give --config JOB.yaml")
    return path
