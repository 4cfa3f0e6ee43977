"""What the README tells a reader to paste works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_use_it(tmp_path, monkeypatch, capsys, small_model):
    """The library example, ten lines, in a folder that holds the shipped model and memory."""
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    (tmp_path / "models").symlink_to(small_model.parent)
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "Where is Anna? Paris" in printed
    assert "bytes of keys and values" in printed
