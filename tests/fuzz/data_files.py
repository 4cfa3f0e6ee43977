"""Data files of the task sources that read records: each is refused with its line, or its samples are the records."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from pathlib import Path

from tests.fuzz import mutation
from tests.fuzz.running import refused
from tests.workers.test_records import FILES
from workers.tasks.loading import load_tasks

TEXT = "One sentence stands here, and another one follows it. " * 9


class Inputs:
    """Files of some records, one of them damaged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        shutil.rmtree(self._folder)
        source = rng.choice([*FILES, "text", "zip"])
        if source == "text":
            return self._text(rng)
        name, task, record = FILES["longbench" if source == "zip" else source]
        records = [dict(record) for _ in range(4)]
        at = rng.randrange(5)
        lines = [json.dumps(mutation.tree_of(rng, r) if i == at else r, default=str) for i, r in enumerate(records)]
        data = "\n".join(lines).encode("utf-8", "replace")
        data = mutation.bytes_of(rng, data) if rng.random() < 0.4 else data
        if source == "zip":
            name, data = "data.zip", _zipped(name, data)
            data = mutation.bytes_of(rng, data) if rng.random() < 0.4 else data
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        config = {"source": "longbench" if source == "zip" else source, "path": str(self._folder), "tasks": [task]}
        try:
            tasks = load_tasks({**config, "disjoint": False})
            size = tasks.size(task, "heldout")
            samples = [tasks.sample(task, "heldout", index) for index in range(size or 0)]
            tasks.fingerprint(task)
        except ValueError as error:
            return refused(error)
        if source != "zip":
            right = [json.loads(line) for line in data.split(b"\n") if line.strip()]
            assert size == len(right), f"{size} samples of {len(right)} records"
        for sample in samples:
            assert sample.answers and all(isinstance(answer, str) for answer in sample.answers)
        return True

    def _text(self, rng: random.Random) -> bool:
        self._folder.mkdir()
        for number in range(rng.randint(0, 9)):
            data = (TEXT * rng.randint(0, 30)).encode()
            suffix = rng.choice([".txt", ".md", ".rst", ".bin"])
            data = mutation.bytes_of(rng, data) if rng.random() < 0.5 else data
            (self._folder / f"{number}{suffix}").write_bytes(data)
        try:
            tasks = load_tasks({"source": "text", "text": str(self._folder), "tokens": 200})
            samples = [tasks.sample(task, "heldout", 0) for task in tasks.tasks]
        except ValueError as error:
            return refused(error)
        assert all(sample.prompt and sample.answers[0] for sample in samples)
        return True


def _zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()
