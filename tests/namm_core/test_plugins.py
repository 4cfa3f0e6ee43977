"""Plug-ins from a folder outside the package: found like our own, and never in the place of one."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from namm_core import plugins

ROOT = Path(plugins.__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch) -> str:
    """A package `rooms` with the plug-in `ours`."""
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "__init__.py").write_text("")
    (tmp_path / "rooms" / "ours.py").write_text("WHO = 'ours'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "rooms"
    for name in [name for name in sys.modules if name.split(".")[0] == "rooms"]:
        del sys.modules[name]


@pytest.fixture
def outside(tmp_path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "theirs.py").write_text("from rooms import ours\nWHO = f'theirs, beside {ours.WHO}'\n")
    (folder / "_private.py").write_text("raise AssertionError('imported')\n")
    return folder


def test_a_folder_from_outside_is_found_like_our_own(package, outside):
    assert plugins.modules(package) == ["ours"]
    for _ in range(2):  # adding it twice is adding it once
        plugins.extend(package, outside)
        assert plugins.modules(package) == ["ours", "theirs"]
    assert len(importlib.import_module(package).__path__) == 2
    assert plugins.load(package, "theirs", "room").WHO == "theirs, beside ours"


def test_names_are_listed_without_importing_anything(package, outside):
    (outside / "broken.py").write_text("raise AssertionError('imported')\n")
    plugins.extend(package, outside)
    assert plugins.modules(package) == ["broken", "ours", "theirs"]


def test_no_file_takes_the_place_of_another(package, outside):
    """Neither of one of ours nor of one of another folder; the refused folder adds nothing at all."""
    (outside / "ours.py").write_text("WHO = 'an impostor'\n")
    with pytest.raises(ValueError, match="outside/ours.py: rooms has a ours already") as error:
        plugins.extend(package, outside)
    assert "\n" not in str(error.value)
    assert plugins.modules(package) == ["ours"] and plugins.load(package, "ours", "room").WHO == "ours"
    (outside / "ours.py").unlink()
    plugins.extend(package, outside)
    other = outside.with_name("other")
    other.mkdir()
    (other / "theirs.py").write_text("")
    with pytest.raises(ValueError, match="has a theirs already"):
        plugins.extend(package, other)


def test_a_folder_that_is_not_there_and_a_name_that_is_not_known_are_one_line(package, tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        plugins.extend(package, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown room 'hours'; did you mean 'ours'. Known: ours$"):
        plugins.load(package, "hours", "room")


def test_plugins_are_listed_and_added_without_torch(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\n")
    code = (
        "import sys; from pathlib import Path; from namm_core import plugins\n"
        "for package in ('namm_core.policies', 'namm_core.scoring.scorers'):\n"
        "    plugins.extend(package, Path(sys.argv[1]))\n"
        "    assert 'mine' in plugins.modules(package)\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
