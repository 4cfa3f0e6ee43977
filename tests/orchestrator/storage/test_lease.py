"""Two jobs never share a URL, and a dead one does not keep it."""

from __future__ import annotations

import json
import socket
import threading
import time

import psutil
import pytest

from orchestrator.storage.mirror import Mirror
from tests.orchestrator.keepers import (
    QUICK,
    has,
    one_line,
    put,
    start,
    tree,
    until,
)


def test_a_live_job_elsewhere_on_this_machine_is_named(tmp_path, kept):
    url = f"file://{kept}"
    job = start(tmp_path / "first", url, count=1, pause=60)
    try:
        job.stdout.readline()
        with pytest.raises(ValueError, match="is in use by a live job") as refusal:
            Mirror(tmp_path / "second", url, **QUICK)
        text = one_line(refusal)
        assert f"process {job.pid} on {socket.gethostname()}" in text and "s ago" in text
        assert not (tmp_path / "second").exists()  # a refusal leaves nothing
    finally:
        job.kill()
        job.wait()
    Mirror(tmp_path / "second", url, **QUICK).close()


def test_a_process_number_used_again_is_not_the_owner(tmp_path, kept):
    Mirror(tmp_path / "ours", f"file://{kept}", **QUICK).close()
    owner = json.loads((kept / "owner.json").read_text()) | {"id": "other", "released": False}
    (kept / "owner.json").write_text(json.dumps(owner))
    with pytest.raises(ValueError, match="in use by a live job"):
        Mirror(tmp_path / "ours", f"file://{kept}", **QUICK)
    began = psutil.Process().create_time()  # this process began after the owner's last sign of life
    (kept / "owner.json").write_text(json.dumps(owner | {"time": began - 20}))
    Mirror(tmp_path / "ours", f"file://{kept}", **QUICK).close()


def elsewhere(age: float) -> bytes:
    owner = {"id": "other", "host": "gpu-7", "machine": "other", "pid": 17, "time": time.time() - age}
    return json.dumps({**owner, "released": False}).encode()


def test_another_machine_is_dead_only_when_it_is_silent(tmp_path, kept):
    kept.mkdir()
    owner = kept / "owner.json"
    owner.write_bytes(elsewhere(age=5))
    with pytest.raises(ValueError, match=r"process 17 on gpu-7, last sign of life 5 s ago\); if .* in 55 s") as refusal:
        Mirror(tmp_path / "ours", f"file://{kept}", **QUICK)
    one_line(refusal)
    # Its clock is an hour behind, but it lives.
    stop = threading.Event()
    owner.write_bytes(elsewhere(age=3600))

    def beat():
        while not stop.wait(0.2):
            part = kept / "owner.part"
            part.write_bytes(elsewhere(age=3600))
            part.replace(owner)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ValueError, match="in use by a live job"):
            Mirror(tmp_path / "ours", f"file://{kept}", **QUICK)
    finally:
        stop.set()
        thread.join()
    begun = time.monotonic()
    Mirror(tmp_path / "ours", f"file://{kept}", **QUICK).close()
    assert time.monotonic() - begun > 0.75  # it listened


def test_of_two_that_start_at_once_one_wins(tmp_path, url):
    won, refused = [], []
    together = threading.Barrier(2)

    def begin(name: str) -> None:
        together.wait()
        try:
            won.append(Mirror(tmp_path / name, url, every=0.1, beat=10))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == len(refused) == 1, refused
    won[0].close()


def test_who_was_taken_over_writes_nothing_more(tmp_path, kept, caplog):
    told = []
    mirror = Mirror(tmp_path / "ours", f"file://{kept}", **QUICK, on_lost=told.append)
    put(tmp_path / "ours", 1)
    assert mirror.flush(10) and mirror.lost is None
    (kept / "owner.json").write_bytes(elsewhere(age=0))
    until(lambda: told)
    assert told == [mirror.lost] and "taken over by another job (process 17 on gpu-7)" in mirror.lost
    before = tree(kept)
    put(tmp_path / "ours", 2)
    begun = time.monotonic()
    assert not mirror.flush(10) and not mirror.close()
    assert time.monotonic() - begun < 2
    assert tree(kept) == before
    assert has(tmp_path / "ours", 2)


def test_a_url_that_was_away_is_looked_at_before_it_is_written(tmp_path, kept):
    mirror = Mirror(tmp_path / "ours", f"file://{kept}", every=0.1, beat=60)
    put(tmp_path / "ours", 1)
    assert mirror.flush(10)
    kept.rename(tmp_path / "away")
    put(tmp_path / "ours", 2)
    assert not mirror.flush(0.5)
    (tmp_path / "away" / "owner.json").write_bytes(elsewhere(age=0))
    before = tree(tmp_path / "away")
    (tmp_path / "away").rename(kept)
    assert not mirror.flush(10) and "gpu-7" in mirror.lost
    assert tree(kept) == before
