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
