"""A run folder kept twice: what the URL has is there after any death, and two jobs never share it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import fsspec
import psutil
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import pieces as rooms
from orchestrator import storage
from orchestrator.journal import Journal
from orchestrator.pieces import Piece, chain
from orchestrator.storage import Mirror
from workers.unit import SampleRef, SampleResult

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"every": 0.1, "beat": 0.5}

# A job: results one by one, each printed when it is on disk.
JOB = """
import sys, time
from pathlib import Path
from orchestrator.journal import Journal
from orchestrator.storage import Mirror
from workers.unit import SampleResult
folder, url, first, count, pause = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5]), float(sys.argv[5])
try:
    with Mirror(folder, url, every=0.1, beat=0.5) as mirror:
        journal = Journal(folder, "job")
        print("open", len(journal), flush=True)
        for index in range(first, first + count):
            journal.put([("p", SampleResult("residence", "train", index, 0.25, -0.1, 0.5, [0.4], 100, "Paris"))])
            print(index, time.time(), flush=True)
            time.sleep(pause)
        journal.close()
        print("closed", mirror.close(20), flush=True)
except ValueError as error:
    print("refused", error, flush=True)
"""


def start(folder: Path, url: str, first: int = 0, count: int = 10**6, pause: float = 0.01, **env) -> subprocess.Popen:
    command = [sys.executable, "-c", JOB, str(folder), url, str(first), str(count), str(pause)]
    environment = {**os.environ, **env}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def lines(job: subprocess.Popen) -> list[str]:
    return job.communicate(timeout=60)[0].splitlines()


def killed_after(job: subprocess.Popen, seconds: float, safe: float) -> list[int]:
    """Kills a job `seconds` after its first result; returns what was on disk `safe` seconds before."""
    assert job.stdout.readline().startswith("open")
    job.stdout.readline()
    time.sleep(seconds)
    job.send_signal(signal.SIGKILL)
    at = time.time()
    known = [line.split() for line in job.stdout.read().splitlines() if line.count(" ") == 1]
    job.wait()
    return [int(index) for index, when in known if float(when) < at - safe]


def result(index: int, score: float = 0.25) -> SampleResult:
    return SampleResult("residence", "train", index, score, -0.1, 0.5, [0.4], 100, "Paris")


def put(folder: Path, *indices: int, score: float = 0.25) -> None:
    folder.mkdir(exist_ok=True)
    journal = Journal(folder, "job")
    journal.put([("p", result(index, score)) for index in indices])
    journal.close()


def has(folder: Path, index: int) -> bool:
    journal = Journal(folder, "job")
    journal.close()
    return journal.get("p", SampleRef("residence", "train", index)) is not None


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pieces(store: Path) -> list[Path]:
    return sorted((store / "journal").iterdir())


def until(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.02)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path) -> str:
    return f"file://{tmp_path}/kept/run" if request.param == "file" else f"memory://{tmp_path.name}/run"


@pytest.fixture
def kept(tmp_path) -> Path:
    return tmp_path / "kept"


def test_after_a_close_the_url_makes_the_same_folder_again(tmp_path, url):
    ours = tmp_path / "ours"
    with Mirror(ours, url, **QUICK) as mirror:
        journal = Journal(ours, "job")
        for index in range(50):
            journal.put([("p", result(index))])
            time.sleep(0.01)
        (ours / "namm").mkdir()
        (ours / "namm" / "model.safetensors").write_bytes(bytes(1000))
        (ours / "job.yaml").write_text("name: x")
        (ours / "fitness.png").write_bytes(b"")
        for name in ("lock", ".hidden", "result.json.part"):
            (ours / name).write_text("not this")
        journal.put([("p", result(99))])
        journal.close()
        assert mirror.close() and mirror.behind == 0
    assert storage.exists(url) and storage.fetch(url, "job.yaml") == b"name: x"
    assert storage.fetch(url, "nothing") is None
    theirs = tmp_path / "theirs"
    Mirror(theirs, url, **QUICK).close()
    assert tree(theirs) == {k: v for k, v in tree(ours).items() if k not in ("lock", ".hidden", "result.json.part")}
    assert has(theirs, 99)
    if url.startswith("file"):
        assert not [path for path in tmp_path.rglob("*.part") if path.name != "result.json.part"]


def test_nothing_is_there_before_a_run(url):
    assert not storage.exists(url) and storage.fetch(url, "job.yaml") is None


def test_a_result_is_at_the_url_soon_and_changed_files_too(tmp_path, kept):
    ours = tmp_path / "ours"
    with Mirror(ours, f"file://{kept}") as mirror:
        put(ours, 1)
        start = time.monotonic()
        until(lambda: (kept / "journal").exists() and b"".join(map(Path.read_bytes, pieces(kept))).count(b"policy"))
        assert time.monotonic() - start < 3
        for text in ("one", "longer", "LONGER"):
            (ours / "generations.jsonl").write_text(text)
            assert mirror.flush(10)
            assert (kept / "generations.jsonl").read_text() == text


def test_a_killed_job_goes_on_in_an_empty_folder(tmp_path, kept):
    url = f"file://{kept}"
    job = start(tmp_path / "first", url)
    safe = killed_after(job, 2, safe=1.5)
    assert safe
    (kept / "kept.png.0123.part").write_text("half of it")
    again = start(tmp_path / "second", url, first=10**6, count=3)  # at once: its owner is dead
    assert lines(again)[-1] == "closed True"
    journal = Journal(tmp_path / "second", "job")
    for index in [*safe, 10**6, 10**6 + 2]:
        assert journal.get("p", SampleRef("residence", "train", index)) == result(index)
    journal.close()
    assert not list(tmp_path.rglob("*.part"))


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


def test_half_a_line_is_not_carried_over(tmp_path, kept):
    with Mirror(tmp_path / "ours", f"file://{kept}", **QUICK) as mirror:
        put(tmp_path / "ours", 1)
        journal = tmp_path / "ours" / "journal.jsonl"
        whole = journal.read_bytes()
        with journal.open("ab") as file:
            file.write(b"0123abcd {")
        assert mirror.flush(10)
    assert b"".join(map(Path.read_bytes, pieces(kept))) == whole


def test_a_shorter_journal_is_made_longer_on_either_side(tmp_path, kept):
    url = f"file://{kept}"
    put(tmp_path / "ours", 1)
    Mirror(tmp_path / "ours", url, **QUICK).close()
    old = (tmp_path / "ours" / "journal.jsonl").read_bytes()
    put(tmp_path / "ours", 2)
    (tmp_path / "ours" / "generations.jsonl").write_text("new")
    Mirror(tmp_path / "ours", url, **QUICK).close()  # the URL was behind
    new = (tmp_path / "ours" / "journal.jsonl").read_bytes()
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "journal.jsonl").write_bytes(new[: len(old) + 20])  # behind, and torn
    (tmp_path / "late" / "generations.jsonl").write_text("old")
    Mirror(tmp_path / "late", url, **QUICK).close()
    assert (tmp_path / "late" / "journal.jsonl").read_bytes() == new
    assert (tmp_path / "late" / "generations.jsonl").read_text() == "new"
    assert not list((tmp_path / "late").glob("journal-*"))


def test_two_machines_in_turn_lose_time_only(tmp_path, kept, caplog):
    url = f"file://{kept}"
    put(tmp_path / "one", 1)
    Mirror(tmp_path / "one", url, **QUICK).close()
    put(tmp_path / "one", 2)  # never carried over: the machine was cut off
    mine = (tmp_path / "one" / "journal.jsonl").read_bytes()
    with Mirror(tmp_path / "two", url, **QUICK):
        put(tmp_path / "two", 3)
    Mirror(tmp_path / "one", url, **QUICK).close()
    assert "another journal" in caplog.text and "journal-set-aside-1.jsonl" in caplog.text
    assert tree(tmp_path / "one")["journal.jsonl"] == tree(tmp_path / "two")["journal.jsonl"]
    assert (tmp_path / "one" / "journal-set-aside-1.jsonl").read_bytes() == mine
    assert has(tmp_path / "one", 3) and not has(tmp_path / "one", 2)


def test_another_run_at_the_url_is_refused_and_both_stay(tmp_path, kept):
    put(tmp_path / "one", 1)
    Mirror(tmp_path / "one", f"file://{kept}", **QUICK).close()
    (tmp_path / "two").mkdir()
    journal = Journal(tmp_path / "two", "other job")
    journal.close()
    before = tree(tmp_path / "two")
    with pytest.raises(ValueError, match="holds another run") as refusal:
        Mirror(tmp_path / "two", f"file://{kept}", **QUICK)
    one_line(refusal)
    assert tree(tmp_path / "two") == before
    Mirror(tmp_path / "one", f"file://{kept}", **QUICK).close()  # the refusal gave the URL free


@pytest.mark.parametrize("damage", ["torn", "flipped", "missing"])
@pytest.mark.parametrize("has_local", [True, False])
def test_a_damaged_piece_is_not_believed(tmp_path, kept, caplog, damage, has_local):
    url = f"file://{kept}"
    ours = tmp_path / "ours"
    with Mirror(ours, url, every=60, beat=0.5) as mirror:  # a piece a flush
        for index in range(4):
            put(ours, index)
            assert mirror.flush(10)
    whole = (ours / "journal.jsonl").read_bytes()
    assert len(pieces(kept)) == 4
    victim = pieces(kept)[2]
    data = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data[:-10] if damage == "torn" else data.replace(b"0.25", b"0.75"))
    folder = ours if has_local else tmp_path / "empty"
    Mirror(folder, url, **QUICK).close()
    if has_local:
        assert (ours / "journal.jsonl").read_bytes() == whole
        # A flipped bit of what is here anyway is not looked for.
        assert ("left out" in caplog.text) == (damage != "flipped")
    else:
        assert has(folder, 1) and not has(folder, 2) and not has(folder, 3)
        assert "left out" in caplog.text and list((kept / "left-out").iterdir())
        assert whole.startswith((folder / "journal.jsonl").read_bytes()[:-100])
    links = chain(map(Piece.parse, (f"journal/{path.name}" for path in pieces(kept))))
    reach = len(whole) if has_local else victim_start(victim)
    assert links[-1].end == reach


def victim_start(path: Path) -> int:
    return int(path.name[:12])


def test_a_lost_url_is_caught_up_with(tmp_path, kept, caplog):
    ours = tmp_path / "ours"
    with Mirror(ours, f"file://{kept}", **QUICK) as mirror:
        put(ours, 1)
        assert mirror.flush(10)
        kept.rename(tmp_path / "away")
        kept.write_text("a file where the folder was")
        begun = time.monotonic()
        put(ours, 2)
        assert time.monotonic() - begun < 1
        assert not mirror.flush(0.4) and mirror.behind > 0
        assert kept.is_file() and caplog.text.count("is lost") == 1
        kept.unlink()  # not there at all: nothing is made in its place
        assert not mirror.flush(0.4) and not kept.exists()
        (tmp_path / "away").rename(kept)
        assert mirror.flush(10) and mirror.behind == 0
        assert caplog.text.count("is lost") == 1 and caplog.text.count("is back") == 1
    assert b"".join(map(Path.read_bytes, pieces(kept))) == (ours / "journal.jsonl").read_bytes()


def test_a_url_that_was_emptied_gets_all_again(tmp_path, url, caplog):
    ours = tmp_path / "ours"
    fs, root = fsspec.url_to_fs(url)
    with Mirror(ours, url, **QUICK) as mirror:
        put(ours, 1)
        (ours / "job.yaml").write_text("name: x")
        assert mirror.flush(10)
        fs.rm(root, recursive=True)
        fs.makedirs(root, exist_ok=True)
        until(lambda: "was emptied" in caplog.text)
        put(ours, 2)
        assert mirror.flush(10)
    Mirror(tmp_path / "again", url, **QUICK).close()
    assert has(tmp_path / "again", 1) and has(tmp_path / "again", 2) and (tmp_path / "again" / "job.yaml").exists()


def test_many_pieces_become_few(tmp_path, kept):
    url = f"file://{kept}"
    ours = tmp_path / "ours"
    with Mirror(ours, url, **QUICK) as mirror:
        put(ours, *range(600))
        assert mirror.flush(10)
    whole = (ours / "journal.jsonl").read_bytes()
    # As if each line had been a piece: what a day of slow results looks like.
    pieces(kept)[0].unlink()
    at = 0
    for line in whole.splitlines(keepends=True):
        piece = Piece.of(at, line)
        (kept / piece.name).write_bytes(line)
        at = piece.end
    some = pieces(kept)[:5]
    copies = {path: path.read_bytes() for path in some}
    Mirror(ours, url, **QUICK).close()
    assert len(pieces(kept)) < rooms.MERGE_EVERY
    for path, data in copies.items():  # as if it had died before the old ones were gone
        path.write_bytes(data)
    Mirror(tmp_path / "again", url, **QUICK).close()
    assert (tmp_path / "again" / "journal.jsonl").read_bytes() == whole
    assert not any(path.exists() for path in some) and not (kept / "left-out").exists()


def test_a_long_journal_goes_in_pieces(tmp_path, kept):
    put(tmp_path / "ours", 1)
    journal = tmp_path / "ours" / "journal.jsonl"
    with journal.open("ab") as file:
        for line in (b"%08x %s\n" % (zlib.crc32(text), text) for text in (b"%01000d" % i for i in range(20_000))):
            file.write(line)
    Mirror(tmp_path / "ours", f"file://{kept}", **QUICK).close()
    assert len(pieces(kept)) == 3 and max(path.stat().st_size for path in pieces(kept)) <= rooms.PIECE_BYTES
    assert all(path.read_bytes().endswith(b"\n") for path in pieces(kept))
    Mirror(tmp_path / "again", f"file://{kept}", **QUICK).close()
    assert (tmp_path / "again" / "journal.jsonl").read_bytes() == journal.read_bytes()


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=8), st.data())
def test_a_chain_is_found_among_strays(parts, data):
    """Whatever other pieces lie about, what follows from 0 without a gap and reaches farthest is found."""
    whole, links = b"", []
    for part in parts:
        links.append(Piece.of(len(whole), part))
        whole += part
    strays = [
        Piece.of(data.draw(st.integers(0, 60)), data.draw(st.binary(min_size=1, max_size=5)))
        for _ in range(data.draw(st.integers(0, 4)))
    ]
    found = chain([*links, *strays])
    assert [piece.start for piece in found] == [0, *(piece.end for piece in found)][:-1][: len(found)]
    assert (found[-1].end if found else 0) >= len(whole)
    assert chain(links) == links


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3:/bucket/run", "is not a URL"),
        ("bucket/run", "is not a URL"),
        ("nosuch://me:hunter2@bucket/run", "Protocol not known: nosuch"),
        ("http://127.0.0.1:9/run", "cannot be used"),
        ("dropbox://folder/run", "needs a package"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(tmp_path, address, says):
    with pytest.raises(ValueError, match=says) as refusal:
        Mirror(tmp_path / "ours", address, **QUICK)
    assert "hunter2" not in one_line(refusal)
    assert not (tmp_path / "ours").exists()


def test_a_package_that_is_missing_is_named(tmp_path):
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(ValueError, match="pip install gcsfs"):
        Mirror(tmp_path / "ours", "gs://bucket/run", **QUICK)


def test_a_file_or_the_run_folder_is_no_place(tmp_path, kept):
    kept.write_text("")
    with pytest.raises(ValueError, match="cannot be used"):
        Mirror(tmp_path / "ours", f"file://{kept}", **QUICK)
    with pytest.raises(ValueError, match="lies in the run folder"):
        Mirror(tmp_path / "ours", f"file://{tmp_path}/ours/copy", **QUICK)
    assert not (tmp_path / "ours").exists()


@pytest.fixture
def s3():
    """An S3 server in a process of its own: (environment of its clients, its process's starter)."""
    for package in ("moto", "s3fs", "flask"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install s3fs 'moto[s3,server]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    started = []

    def serve() -> subprocess.Popen:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

        def bucket() -> bool:
            try:
                return requests.put(f"{address}/bucket", timeout=5).ok
            except requests.RequestException:
                return False

        until(bucket, 30)
        return started[-1]

    keys = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_DEFAULT_REGION": "us-east-1"}
    yield {**keys, "AWS_ENDPOINT_URL": address}, serve
    for server in started:
        server.kill()
        server.wait()


def test_s3_after_kill_and_with_a_server_that_forgets_all(tmp_path, s3):
    environment, serve = s3
    server = serve()
    url = "s3://bucket/runs/x"
    safe = killed_after(start(tmp_path / "first", url, **environment), 2, safe=1.5)
    assert safe
    again = start(tmp_path / "second", url, first=10**6, pause=0.05, count=60, **environment)
    again.stdout.readline()
    time.sleep(1)
    server.kill()
    server.wait()
    serve()  # another one, empty
    assert lines(again)[-1] == "closed True"
    third = start(tmp_path / "third", url, count=0, **environment)
    assert lines(third)[-1] == "closed True"
    whole = (tmp_path / "second" / "journal.jsonl").read_bytes()
    assert (tmp_path / "third" / "journal.jsonl").read_bytes().startswith(whole)
    assert has(tmp_path / "third", safe[-1]) and has(tmp_path / "third", 10**6 + 59)
    (line,) = lines(start(tmp_path / "fourth", "s3://no-bucket/x", count=0, **environment))
    assert line.startswith("refused") and "make the bucket" in line
