"""What README and docs tell a reader to paste works as it stands there, and what they point to exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CURRENT = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if path.name != "LOG.md"),
    *sorted((ROOT / "models").glob("*/README.md")),
]
"""Pages that describe the repository as it is; the log and the changelog describe it as it was."""
PAGES = [*CURRENT, ROOT / "docs" / "LOG.md", ROOT / "CHANGELOG.md"]
FILE = re.compile(
    r"`((?:orchestrator|workers|namm_core|configs|docs|tests|benchmarks|examples|models)/[\w./-]*|cluster[\w.]*\.yaml)`"
)
MADE = ("models/hopper",)
"""Folders that a command of the same page writes."""


def name(page: Path) -> str:
    """A page's path inside the repository."""
    return str(page.relative_to(ROOT))


def code(text: str) -> str:
    """What stands in a page's code, in lines and in blocks; line breaks inside a line's code become spaces."""
    blocks = re.findall(r"^```.*?^```|^    \S.*?$", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return "\n".join([*blocks, *(" ".join(piece.split()) for piece in inline)])


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@cache
def commands() -> list[str]:
    """The commands of `namm`, as its help lists them."""
    shown = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r"^ {2,4}([a-z]+)  ", shown, re.MULTILINE)


@cache
def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_use_it(tmp_path, monkeypatch, capsys, small_model):
    """The library example, ten lines, in a folder with the shipped model and memory; nothing in it is deprecated."""
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    (tmp_path / "models").symlink_to(small_model.parent)
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*deprecated")
        exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "Where is Anna? Paris" in printed
    assert "bytes of keys and values" in printed


def test_tutorial_program(tmp_path, monkeypatch, capsys, small_model):
    """The program in the tutorial, in a folder with the shipped model and memory; the text is too short to forget."""
    program = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "models").symlink_to(small_model.parent)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "tutorial.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "Where is Anna? Paris" in printed
    assert "[[1.0, 1.0, 1.0]]" in printed


def test_without_the_package(tmp_path, monkeypatch, small_model):
    """The two lines about `custom_generate`, on the shipped memory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from namm_core import Namm

    text = " ".join(README.read_text().split())
    save, use = (
        re.search(start + r".*?\))`", text).group(1) for start in (r"`(Namm\..*?\.save_", r"`(model\.generate\(")
    )
    (tmp_path / "models").symlink_to(small_model.parent)
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained("models/recall-small")
    names = {"Namm": Namm, "model": AutoModelForCausalLM.from_pretrained("models/recall-small")}
    names["ids"] = tokenizer("Text: Anna:Paris. The farmer waited.\nWhere is Anna?", return_tensors="pt").input_ids
    eval(save, names)
    answer = eval(use, names)
    assert "Where is Anna? Paris" in tokenizer.decode(answer[0])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page):
    """Links to files, and to headings of pages, lead somewhere."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_files_that_are_named(page):
    """Files and folders of the repository that stand in the text exist under that name."""
    for named in FILE.findall(page.read_text()):
        if "NAME" not in named and named not in MADE:
            assert (ROOT / named).exists(), f"{page.name}: {named}"


@pytest.mark.parametrize("page", CURRENT, ids=name)
def test_commands_that_are_named(page):
    """`namm ...`, `make ...` and `python -m ...` name commands that there are."""
    written = code(page.read_text())
    for command in re.findall(r"(?:^|-- |['(;] ?)namm ([a-z]+)\b", written, re.MULTILINE):
        assert command in commands(), f"{page.name}: namm {command}"
    for target in re.findall(r"(?<![\w/.-])make ([a-z][\w-]*)", written):
        assert target in targets(), f"{page.name}: make {target}"
    for module in re.findall(r"python -m ([\w.]+)", written):
        assert module in ("pip", "pytest") or importlib.util.find_spec(module), f"{page.name}: python -m {module}"


def test_all_commands_are_listed():
    """The README's list of commands has every command of `namm`."""
    listed = README.read_text().split("## Commands")[1]
    assert {command for command in commands() if f"\nnamm {command}" not in listed} == set()
