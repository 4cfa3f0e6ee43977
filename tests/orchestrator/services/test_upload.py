"""What is submitted to a cluster: the checkout without data, and a word where it is too much."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from orchestrator.services import upload

ROOT = Path(__file__).resolve().parents[3]
MANY = 2**20


def git(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A repository with this one's .gitignore."""
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text("utf-8"), "utf-8")
    (tmp_path / "code.py").write_text("x = 1\n", "utf-8")
    return tmp_path


def test_data_stays_at_home_where_the_docs_download_it_to(checkout):
    """Every place that docs/tasks.md downloads to, and none that this repository has files in."""
    places = set(re.findall(r"--local-dir (\S+?)`", (ROOT / "docs" / "tasks.md").read_text("utf-8")))
    assert "data/LongBench" in places and len(places) >= 4
    for place in places:
        (checkout / place).mkdir(parents=True)
        (checkout / place / "data.zip").write_bytes(bytes(MANY))
    assert set(upload.sizes(checkout)) == {".gitignore", "code.py"}
    assert upload.too_much(checkout, limit=MANY) is None
    if git(ROOT, "rev-parse").returncode == 0:
        assert not git(ROOT, "ls-files", "--cached", "--ignored", "--exclude-standard").stdout


def test_too_much_is_one_line_with_the_largest_file(checkout):
    (checkout / "corpus.bin").write_bytes(bytes(2 * MANY))
    said = upload.too_much(checkout, limit=MANY)
    assert said and "\n" not in said
    assert "2 MiB that ray job submit would send, and Ray takes 1" in said and "largest: corpus.bin, 2 MiB" in said


def test_a_folder_that_is_no_repository_is_not_judged(tmp_path):
    (tmp_path / "file").touch()
    assert upload.sizes(tmp_path / "nowhere") == {}
