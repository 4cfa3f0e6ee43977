"""Records in the benchmarks' own formats, and files of them: for tests of more than one idea."""

from __future__ import annotations

import json
from pathlib import Path

ALL = {"disjoint": False}


def write_lines(file: Path, records: list[dict]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return file


def longbench(number: int, **changes) -> dict:
    """A record in LongBench's format."""
    return {
        "input": f"What is {{{{x}}}} number {number}?",
        "context": f"Passage {number}\n一段 text of & <marks> {number}.",
        "answers": [f"Answer {number}", "another"],
        "length": 9,
        "dataset": "a task",
        "language": "en",
        "all_classes": ["Answer", "Other"],
        "_id": f"{number:048x}",
    } | changes


def infinitebench(number: int, **changes) -> dict:
    """A record in InfiniteBench's format."""
    return {
        "id": number,
        "context": f"A book {number}. def func_{number}(x): return x",
        "input": f"What is func_{number}(-7)? The largest number of the list:",
        "answer": [f"{number}"],
        "options": [],
    } | changes


def plain(number: int, **changes) -> dict:
    """A record of the project's own format."""
    return {
        "context": f"Fact {number}.",
        "question": "Which?",
        "answers": [str(number)],
        "metric": "exact_match",
        "max_new_tokens": 3,
    } | changes
