"""The rules of the house hold, and each finds what breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import architecture


@pytest.mark.parametrize("rule", architecture.RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule):
    assert list(rule()) == []


@pytest.fixture
def house(tmp_path) -> Path:
    """A house with one breach of every rule that is read from the source."""
    files = {
        "namm_core/low.py": "def late():\n    import workers.high\n    import requests",
        "workers/high.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from orchestrator import roof",
        "orchestrator/roof.py": "pass\n" * 401,
        "orchestrator/attic/one.py": "from orchestrator.attic import two\nimport orchestrator.cellar.three",
        "orchestrator/attic/two.py": "from . import one",
        "orchestrator/cellar/three.py": "def late():\n    from ..attic.two import one",
    }
    for name, text in files.items():
        file = tmp_path / name
        for folder in (file.parent, *file.parent.parents):
            if folder.is_relative_to(tmp_path) and folder != tmp_path:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "__init__.py").touch()
        file.write_text(text)
    return tmp_path


def test_each_rule_finds_what_breaks_it(house):
    assert list(architecture.no_import_up_a_floor(house)) == [
        "namm_core.low imports workers.high",
        "workers.high imports orchestrator.roof",
    ]
    assert list(architecture.the_core_stands_alone(house))[0] == "namm_core.low imports requests"
    (files,) = architecture.no_circle_of_files(house)
    assert files == "orchestrator.attic.one -> orchestrator.attic.two -> orchestrator.attic.one"
    (folders,) = architecture.no_circle_of_folders(house)
    assert folders.startswith("orchestrator.attic -> orchestrator.cellar -> orchestrator.attic (")
    assert "orchestrator.cellar.three imports orchestrator.attic.two" in folders
    assert list(architecture.no_long_module(house)) == ["orchestrator/roof.py: 401"]
