"""Journals with damaged lines: what is left of them is what was written, and the job goes on."""

from __future__ import annotations

import json
import logging
import random
import zlib
from contextlib import closing
from pathlib import Path

from orchestrator.storage.journal import FILE, Journal
from tests.fuzz import mutation
from tests.fuzz.running import refused
from workers.unit import SampleRef, SampleResult


class Inputs:
    """Journals of a short search."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._results = {
            (f"policy{policy}", index): SampleResult(
                "topic", "train", index, index / 7 + policy, -0.5, 0.25, [0.25], 9, "Oslo"
            )
            for policy in range(4)
            for index in range(3)
        }
        (folder / FILE).unlink(missing_ok=True)
        with closing(Journal(folder, "job")) as journal:
            journal.fact("statistics", lambda: [[0.5], [1.0], 3.0])
            journal.put([(policy, result) for (policy, _), result in self._results.items()])
            journal.tell({"generation": 1, "kept": 0.5}, [])
            journal.quarantine((SampleRef("topic", "train", 9),), "why")
        self._whole = (folder / FILE).read_bytes()
        logging.getLogger("orchestrator.storage.journal").setLevel(logging.ERROR)  # it says what it leaves out

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        lines = self._whole.splitlines(keepends=True)
        odd = rng.random() < 0.4
        if odd:  # a whole line of something else
            at = rng.randrange(len(lines))
            record = mutation.tree_of(rng, json.loads(lines[at][9:]))
            text = json.dumps(record, default=str).encode()
            lines[rng.choice([at, len(lines) - 1])] = b"%08x %s\n" % (zlib.crc32(text), text)
        data = b"".join(lines)
        (self._folder / FILE).write_bytes(mutation.bytes_of(rng, data) if rng.random() < 0.7 else data)
        new = SampleResult("topic", "train", 77, 1.0, -1.0, 0.5, [0.5], 9, "new")
        try:
            with closing(Journal(self._folder, "job")) as journal:
                found = self._found(journal)
                journal.put([("new", new)])
        except ValueError as error:
            return refused(error)
        with closing(Journal(self._folder, "job")) as again:
            assert again.get("new", SampleRef("topic", "train", 77)) == new and self._found(again) == found
            if not odd:
                assert all(self._results[key] == result for key, result in found.items()), "another result than written"
        return True

    def _found(self, journal: Journal) -> dict[tuple[str, int], SampleResult]:
        found = {(p, i): journal.get(p, SampleRef("topic", "train", i)) for p, i in self._results}
        return {key: result for key, result in found.items() if result is not None}
