"""Plug-ins in folders outside this repository: found by name, and evaluated, as our own are.

Each test that adds plug-ins does so in a process of its own, since a process cannot forget them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workers import plugins

SOURCE = """
from dataclasses import dataclass

from workers.tasks import Sample
from workers.tasks.source import Source


@dataclass(frozen=True)
class EchoConfig:
    word: str = "ja"


class EchoTasks(Source):
    tasks = ("echo",)

    def __init__(self, config):
        self.config = config

    def sample(self, task, split, index):
        return Sample(task, split, index, f"Say {self.config.word} {index}:", (self.config.word,), ())
"""
TARGET = '''
from workers.targets.language import Language


class Backwards(Language):
    """A language model that is shown its prompts backwards."""
'''

POLICY = '''
from dataclasses import dataclass

from namm_core.policy import BasePolicy


@dataclass
class EveryOther(BasePolicy):
    """Keeps one token in `step`."""

    update_interval: int = 512
    step: int = 2

    def keep(self, state, view):
        return view.positions % self.step == 0
'''


def written(folder: Path, **files: str) -> Path:
    """The plug-in folder with these files: sub-folder and name, joined by two underscores."""
    for name, text in files.items():
        kind, _, module = name.partition("__")
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / f"{module}.py").write_text(text)
    return folder


def run(program: str, *arguments: object, path: Path | None = None) -> str:
    """Standard output of a Python program in a process of its own; path: one more folder to import from."""
    start = f"import sys; sys.path.insert(0, {str(path)!r})\n" if path else "import sys\n"
    command = [sys.executable, "-c", start + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_evaluator_finds_source_and_target_outside(tmp_path, small_model):
    folder = written(tmp_path / "mine", sources__echo=SOURCE, targets__backwards=TARGET)
    said = run(
        """
from workers import targets
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef, Unit

tasks = {"source": "echo", "word": "nein"}
config = EvaluatorConfig(ModelConfig(sys.argv[1]), tasks, target="backwards", plugins=(sys.argv[2],))
evaluator = Evaluator(config)
result = evaluator.evaluate(Unit((PolicySpec("full"),), (SampleRef("echo", "train", 3),)))[0][0]
sample = evaluator.target.tasks.sample("echo", "train", 3)
print(type(evaluator.target).__name__, sample.prompt, result.kept, "backwards" in targets.names())
""",
        small_model,
        folder,
    )
    assert said == "Backwards Say nein 3: 1.0 True"


def test_an_evaluator_finds_a_policy_outside(tmp_path, small_model):
    """It takes no budget, which it says itself, and its option is its own."""
    folder = written(tmp_path / "mine", policies__every_other=POLICY)
    said = run(
        """
from namm_core import NammConfig
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef

model, memory = ModelConfig(sys.argv[1]), NammConfig(update_interval=64)
config = EvaluatorConfig(model, {"source": "recall", "tokens": 256}, memory, plugins=(sys.argv[2],))
seen = Evaluator(config).reading(PolicySpec("every_other", options={"step": 4}), SampleRef("topic", "train", 0))
print(*seen.held.any(axis=(0, 1)).nonzero()[0])
""",
        small_model,
        folder,
    )
    assert said.split() == [str(i) for i in range(256) if i % 4 == 0 or i == 255]  # the newest token always stays


def test_an_installed_package_names_itself(tmp_path):
    """By an entry point of the group `namm.plugins`, or by being named as a package; either way the same folder."""
    written(tmp_path / "acme" / "tools", sources__echo=SOURCE)
    (tmp_path / "acme" / "__init__.py").touch()
    (tmp_path / "acme" / "tools" / "__init__.py").touch()
    program = """
from workers import plugins
from workers.tasks.loading import load_tasks

plugins.add(sys.argv[1:])
plugins.add(sys.argv[1:])
print(*plugins.folders(sys.argv[1:]), load_tasks({"source": "echo"}).answer_limit("echo"))
"""
    expected = f"{(tmp_path / 'acme' / 'tools').resolve()} None"
    assert run(program, "acme.tools", path=tmp_path) == expected
    (tmp_path / "acme-1.0.dist-info").mkdir()
    (tmp_path / "acme-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (tmp_path / "acme-1.0.dist-info" / "entry_points.txt").write_text("[namm.plugins]\nacme = acme.tools\n")
    assert run(program, path=tmp_path) == run(program, "acme.tools", path=tmp_path) == expected


def test_a_file_named_like_one_of_ours_is_refused(tmp_path):
    folder = written(tmp_path, sources__recall=SOURCE)
    with pytest.raises(ValueError, match="recall") as error:
        plugins.add([str(folder)])
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("plugin", ["no/such/folder", "no_such_package", "no_such.package", "json.decoder", __file__])
def test_what_is_neither_folder_nor_package_is_said_in_one_line(plugin):
    with pytest.raises(ValueError, match="is neither a folder nor an importable package") as error:
        plugins.folders([plugin])
    assert "\n" not in str(error.value)


def test_a_source_that_is_not_whole_is_said_in_one_line(tmp_path):
    folder = written(
        tmp_path, sources__bare="class BareTasks: pass\n", sources__lacking="import no_such_package_at_all\n"
    )
    program = """
from workers import plugins
from workers.tasks.loading import load_tasks

plugins.add(sys.argv[1:])
for name in ("bare", "lacking"):
    try:
        load_tasks({"source": name})
    except ValueError as error:
        print(error)
"""
    bare, lacking = run(program, folder).splitlines()
    assert "bare.py defines no class whose name ends in Config" in bare
    assert lacking == "tasks.source: lacking needs the package no_such_package_at_all, which is not installed"
