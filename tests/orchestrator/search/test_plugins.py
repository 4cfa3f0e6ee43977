"""A search from a folder outside the package, by the job's YAML alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from orchestrator import spec
from orchestrator.search import algorithms
from tests.orchestrator.landscape import TARGET, Landscape, run, timeless

ROOT = Path(__file__).parent.parent.parent.parent
HILL_CLIMB = '''
"""The best of what was tried is the next mean."""

from dataclasses import dataclass

import numpy as np

from orchestrator.search.base import AskAndTell
from orchestrator.search.config import SearchConfig


@dataclass(frozen=True)
class HillClimbConfig(SearchConfig):
    algorithm: str = "hill_climb"
    shrink: float = 0.9


class HillClimb(AskAndTell):
    Config = HillClimbConfig

    def __init__(self, config, start):
        super().__init__(config, start)
        self._mean, self._sigma, self._generator = self.start, config.sigma0, np.random.RandomState(config.seed)

    @property
    def mean(self):
        return self._mean.astype(np.float32)

    @property
    def sigma(self):
        return self._sigma

    def _sample(self):
        return self._mean + self._sigma * self._generator.randn(self.population, len(self._mean))

    def _learn(self, candidates, fitness):
        self._mean = candidates[np.nanargmax(fitness)]
        self._sigma *= self.config.shrink
'''


@pytest.fixture
def outside(tmp_path):
    """A plug-in folder with a search; afterwards no longer known."""
    searches = tmp_path / "mine" / "searches"
    searches.mkdir(parents=True)
    (searches / "hill_climb.py").write_text(HILL_CLIMB)
    known = list(algorithms.__path__)
    yield tmp_path / "mine"
    algorithms.__path__[:] = known
    sys.modules.pop(f"{algorithms.__name__}.hill_climb", None)


def job_file(folder: Path, **changes) -> Path:
    plain = {
        "name": "s",
        "model": {"path": "m"},
        "tasks": {"source": "recall"},
        "train": ["residence", "topic"],
        "generations": 15,
        "search": {"algorithm": "hill_climb", "population": 8, "sigma0": 0.1, "shrink": 0.95},
        "validation": {"every": 5, "samples": 2},
        "fitness": {"samples": 2},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(plain | changes))
    return folder / "job.yaml"


def test_a_search_from_outside_evolves_and_repeats(outside, tmp_path):
    job = spec.read(job_file(tmp_path, plugins=[str(outside)]))
    evolved, records = run(job, Landscape())
    again, _ = run(spec.read(tmp_path / "job.yaml"), Landscape(), past=records[:7])
    assert np.linalg.norm(evolved.best.theta - TARGET) < 0.7 * np.linalg.norm(TARGET)
    assert records[-1]["sigma"] == pytest.approx(0.1 * 0.95**15) and job.search.shrink == 0.95
    assert timeless(again.generations) == timeless(evolved.generations)
    assert np.array_equal(again.best.theta, evolved.best.theta)
    spec.write(job, tmp_path / "again.yaml")
    assert spec.read(tmp_path / "again.yaml") == job


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plugins": []}, "job.yaml.search.algorithm: unknown search 'hill_climb'; did you mean"),
        ({"search": {"algorithm": "hill_climb", "shrnk": 1}}, "unknown key 'shrnk'; did you mean 'shrink'"),
        ({"search": {"algorithm": "hill_climb", "mirrored": True}}, "mirrored is an option of cma_es; hill_climb has"),
        ({"plugins": ["no/such/folder"]}, "job.yaml.plugins: .*no/such/folder is neither a folder nor an importable"),
        ({"plugins": "mine"}, "plugins: expected a list"),
    ],
)
def test_what_is_wrong_with_it_is_one_clear_line(outside, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        spec.read(job_file(tmp_path, **({"plugins": [str(outside)]} | changes)))
    assert "\n" not in str(caught.value)


def test_a_search_named_like_one_of_ours_is_refused(outside, tmp_path):
    shutil.copy(outside / "searches" / "hill_climb.py", outside / "searches" / "cma_es.py")
    with pytest.raises(ValueError, match="has a cma_es already; give the file another name") as caught:
        spec.read(job_file(tmp_path, plugins=[str(outside)]))
    assert "\n" not in str(caught.value)


def test_it_is_found_in_every_process_that_reads_the_job(outside, tmp_path):
    """A job that goes on is read from its run folder, by another process."""
    path = job_file(tmp_path, plugins=[str(outside)])
    code = f"from orchestrator import spec; print(type(spec.read({str(path)!r}).search).__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "HillClimbConfig"
