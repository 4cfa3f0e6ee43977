"""Writes recall samples as files in LongBench's format: `python -m workers.tasks.longbench_files --out FOLDER`.

With them the small model, which only reads its own language, can take the path of a real benchmark: with source
`longbench` and the template `TEMPLATE`, each prompt is the recall prompt that it was made from. Knows no model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from workers.tasks.sources.recall import RecallConfig, RecallTasks

TEMPLATE = "{context}\n{input}"


def record(tasks: RecallTasks, task: str, index: int) -> dict[str, object]:
    """One training sample of a recall task as a record of LongBench."""
    sample = tasks.sample(task, "train", index)
    context, _, question = sample.prompt.rpartition("\n")
    return {
        "input": question,
        "context": context,
        "answers": list(sample.answers),
        "length": len(sample.prompt.split()),
        "dataset": task,
        "language": "en",
        "all_classes": None,
        "_id": f"{task}-{index}",
    }


def write(folder: Path, config: RecallConfig, samples: int) -> None:
    """Writes `data/<kind>.jsonl` for each of the configured kinds."""
    tasks = RecallTasks(config)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for task in tasks.tasks:
        lines = (json.dumps(record(tasks, task, index)) + "\n" for index in range(samples))
        (folder / "data" / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write recall samples as files in LongBench's format.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write data/<kind>.jsonl into")
    parser.add_argument("--samples", type=int, default=30, help="records of each kind")
    parser.add_argument("--tokens", type=int, default=264, help="length of a prompt in tokens of the small model")
    parser.add_argument("--kinds", nargs="+", default=["residence", "passkey", "topic"])
    given = parser.parse_args()
    config = RecallConfig(tokens=given.tokens, kinds=tuple(given.kinds), facts=6, topic_words=12)
    write(given.out, config, given.samples)


if __name__ == "__main__":
    main()
