"""What is durable in a run: every score as it arrives, and every generation as it is told.

A score is a pure function of (policy, sample, model, tasks), so the journal is a memo: a job that starts again asks
the same questions in the same order, finds the answers here, and goes on where it stopped. Lines are appended, never
changed, and on disk before anybody acts on them. Each carries a checksum; a torn or damaged line is left out with a
warning, and what it said is computed again. Knows nothing of how results come about.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workers.unit import PolicySpec, SampleRef, SampleResult

logger = logging.getLogger(__name__)

FILE = "journal.jsonl"
"""Its name in the run folder."""


def policy_key(policy: PolicySpec) -> str:
    """Digest of all that a policy's scores depend on."""
    digest = hashlib.sha256(f"{policy.name} {policy.budget!r}".encode())
    if policy.theta is not None:
        digest.update(np.ascontiguousarray(policy.theta, dtype=np.float32).tobytes())
    for part in policy.statistics or ():
        digest.update(np.asarray(part, dtype=np.float64).tobytes())
    if policy.options:  # else keys are as they were before there were options
        digest.update(json.dumps(dict(policy.options), sort_keys=True).encode())
    if policy.protocol != "streaming":  # else keys are as they were before there was another
        digest.update(policy.protocol.encode())
    return digest.hexdigest()[:24]


BASE = policy_key(PolicySpec("full"))
"""The full cache's key."""


def in_use(folder: Path) -> bool:
    """Whether a live job has the run folder."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def unused(folder: Path) -> bool:
    """Whether the run folder has no journal, or one in which nothing was recorded yet: whose job never began."""
    try:
        with (folder / FILE).open("rb") as journal:
            return all(line[9:].startswith(b'{"job": ') for line in journal)
    except FileNotFoundError:
        return True
    except OSError:
        return False


class Lock:
    """Reserves a run folder for one live job, until closed. Raises ValueError when another live job has it."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"{folder} is in use by a live job; wait for it or choose another name") from None

    def close(self) -> None:
        """Releases the folder."""
        self._file.close()


class Journal:
    """Results by policy and sample, the generations told, and what else a job must find again.

    folder: the run's, which the caller has locked; job: digest of what scores depend on besides policy and sample.
    Raises ValueError, one line, when the folder's journal belongs to another job.

    Attributes:
        told: records of the generations told so far, an unbroken sequence.
        quarantined: samples that could not be evaluated, and why.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self.path = folder / FILE
        self.told: list[dict[str, Any]] = []
        self.quarantined: dict[SampleRef, str] = {}
        self._facts: dict[str, Any] = {}
        self._results: dict[SampleRef, dict[str, SampleResult]] = {}
        self._count = 0
        self._named = False
        """Whether a line said that the journal is this job's."""
        good = self._read(job)
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.truncate(good)  # a torn tail would make the next line unreadable
        self._file.seek(good)
        self._write([{"job": job}])  # once for each start: one damaged line must not take the journal's name

    def __len__(self) -> int:
        """Results put so far."""
        return self._count

    def get(self, policy: str, sample: SampleRef) -> SampleResult | None:
        """The result that was put, or None. policy: `policy_key`."""
        return self._results.get(sample, {}).get(policy)

    def put(self, results: list[tuple[str, SampleResult]]) -> list[SampleResult]:
        """Writes results to disk before it returns; returns those that were new. What is known stays as it is."""
        fresh = [(policy, result) for policy, result in results if self._learn(policy, result)]
        if fresh:
            self._write([{"policy": policy, **vars(result)} for policy, result in fresh])
        return [result for _, result in fresh]

    def tell(self, record: dict[str, Any], settled: Sequence[SampleRef]) -> None:
        """Writes a generation's record.

        settled: samples whose results nobody asks for again; they leave memory. Those of the full cache stay: they are
        asked for again where a small set of samples comes round.
        """
        self._write([{"told": record, "settled": settled}])
        self.told.append(record)
        self._settle(settled)

    def quarantine(self, samples: tuple[SampleRef, ...], reason: str) -> None:
        """Leaves samples out, for all policies."""
        self._write([{"quarantined": samples, "reason": reason}])
        self.quarantined.update(dict.fromkeys(samples, reason))

    def fact(self, name: str, make: Callable[[], Any]) -> Any:
        """The value recorded under `name`; where there is none yet, that of `make()` (JSON values) is recorded."""
        if name not in self._facts:
            value = make()
            self._write([{"fact": name, "value": value}])
            self._facts[name] = value
        return self._facts[name]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _learn(self, policy: str, result: SampleResult) -> bool:
        known = self._results.setdefault(SampleRef(result.task, result.split, result.index), {})
        if policy in known:
            return False
        known[policy] = result
        self._count += 1
        return True

    def _settle(self, samples: Iterable[Sequence]) -> None:
        for task, split, index in samples:
            known = self._results.pop(ref := SampleRef(task, split, index), {})
            if BASE in known:
                self._results[ref] = {BASE: known[BASE]}

    def _write(self, records: list[dict]) -> None:
        lines = (json.dumps(record, ensure_ascii=False).encode() for record in records)
        self._file.write(b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, job: str) -> int:
        """Reads what is there; returns the length in bytes up to the last whole line."""
        if not self.path.exists():
            return 0
        good = damaged = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    damaged += 1  # torn: the job died while it was written
                    break
                good += len(line)
                try:
                    checksum, text = line[:8], line[9:-1]
                    if int(checksum, 16) != zlib.crc32(text):
                        raise ValueError("checksum")
                    record = json.loads(text)
                except ValueError:
                    damaged += 1
                    continue
                try:
                    self._recall(record, job)
                except (AttributeError, KeyError, TypeError):  # a whole line, and not of ours
                    damaged += 1
        if good and not self._named:
            raise ValueError(f"{self.path} does not say which job it belongs to; choose another name")
        if damaged:
            logger.warning("%s: %d damaged line(s) left out; what they held is computed again", self.path, damaged)
        return good

    def _recall(self, record: dict[str, Any], job: str) -> None:
        if "policy" in record:
            policy, result = record.pop("policy"), SampleResult(**record)
            numbers = (result.score, result.logprob, result.kept, *result.kept_layers)
            if not (isinstance(policy, str) and isinstance(result.index, int) and isinstance(result.task, str)):
                raise TypeError("a result of nothing")
            if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
                raise TypeError("a result without numbers")
            self._learn(policy, result)
        elif "told" in record:
            # Behind a gap (a damaged line) generations are told again, from results that are still there.
            if record["told"]["generation"] == len(self.told) + 1:
                self.told.append(record["told"])
                self._settle(record["settled"])
        elif "quarantined" in record:
            self.quarantined.update({SampleRef(*ref): record["reason"] for ref in record["quarantined"]})
        elif "fact" in record:
            self._facts[record["fact"]] = record["value"]
        elif record.get("job") == job:
            self._named = True
        else:
            raise ValueError(
                f"{self.path.parent} holds another job (its configuration, model or code differ); choose another name"
            )
