"""What is durable in a run: every score as it arrives.

A score is a pure function of (policy, sample, model, tasks), so the journal is a memo: a job that starts again asks
the same questions in the same order, finds the answers here, and goes on where it stopped. Lines are appended,
never changed; each carries a checksum, and a torn or damaged one is left out with a warning (it is computed again).
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import zlib
from pathlib import Path

import numpy as np

from workers.unit import PolicySpec, SampleRef, SampleResult

logger = logging.getLogger(__name__)


def policy_key(policy: PolicySpec) -> str:
    """Digest of all that a policy's scores depend on."""
    digest = hashlib.sha256(f"{policy.name} {policy.budget!r}".encode())
    if policy.theta is not None:
        digest.update(np.ascontiguousarray(policy.theta, dtype=np.float32).tobytes())
    for part in policy.statistics or ():
        digest.update(np.asarray(part, dtype=np.float64).tobytes())
    return digest.hexdigest()[:24]


class Journal:
    """Results by (policy, sample), in `folder/journal.jsonl`; one live job at a time.

    folder: the run's; job: digest of what the scores depend on beyond policy and sample. Raises ValueError when
    another live job holds the folder, or when its journal belongs to another job.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self.path = folder / "journal.jsonl"
        self._results: dict[tuple[str, SampleRef], SampleResult] = {}
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ValueError(f"{folder} is in use by a live job; wait for it or choose another name") from None
        try:
            good = self._read(job)
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        except BaseException:
            self._lock.close()
            raise
        self._file.truncate(good)  # a torn tail would make the next line unreadable
        self._file.seek(good)
        if not good:
            self._write([{"job": job}])

    def __len__(self) -> int:
        return len(self._results)

    def get(self, policy: str, sample: SampleRef) -> SampleResult | None:
        """The result that was put, or None. policy: `policy_key`."""
        return self._results.get((policy, sample))

    def put(self, results: list[tuple[str, SampleResult]]) -> list[SampleResult]:
        """Writes results to disk before it returns; returns those that were new. What is known stays as it is."""
        fresh = []
        for policy, result in results:
            key = (policy, SampleRef(result.task, result.split, result.index))
            if key not in self._results:
                self._results[key] = result
                fresh.append((policy, result))
        if fresh:
            self._write([{"policy": policy, **dataclasses.asdict(result)} for policy, result in fresh])
        return [result for _, result in fresh]

    def close(self) -> None:
        """Gives the folder free."""
        self._file.close()
        self._lock.close()

    def _write(self, records: list[dict]) -> None:
        lines = (json.dumps(record, ensure_ascii=False).encode() for record in records)
        self._file.write(b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, job: str) -> int:
        """Reads what is there; returns the length in bytes up to the last whole line."""
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        good = data.rfind(b"\n") + 1
        damaged = int(good != len(data))
        for number, line in enumerate(data[:good].splitlines()):
            try:
                checksum, text = line[:8], line[9:]
                if int(checksum, 16) != zlib.crc32(text):
                    raise ValueError("checksum")
                record = json.loads(text)
            except ValueError:
                damaged += 1
                continue
            if "job" in record:
                if record["job"] != job:
                    raise ValueError(
                        f"{self.path.parent} holds another job (its configuration, model or code differ); "
                        "choose another name"
                    )
                continue
            if number == 0:
                raise ValueError(f"{self.path} does not begin with its job; choose another name")
            policy = record.pop("policy")
            result = SampleResult(**record)
            self._results[policy, SampleRef(result.task, result.split, result.index)] = result
        if damaged:
            logger.warning("%s: %d damaged line(s) left out; what they held is computed again", self.path, damaged)
        return good
