"""A run folder kept twice: what the URL has is there after any death."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import requests

from orchestrator.storage import mirror as storage
from orchestrator.storage.journal import Journal
from orchestrator.storage.mirror import Mirror
from tests.orchestrator.keepers import (
    QUICK,
    has,
    killed_after,
    lines,
    one_line,
    pieces,
    put,
    result,
    start,
    tree,
    until,
)
from workers.unit import SampleRef


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


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3:/bucket/run", "is not a URL"),
        ("bucket/run", "is not a URL"),
        ("nosuch://bucket/run", "Protocol not known: nosuch"),
        ("nosuch://me:hunter2@bucket/run", "cannot be read: give s3://bucket/folder"),
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
