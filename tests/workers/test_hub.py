"""Models of the Hub: what is fetched and how often, what is refused and why, and that the token stays where it is.

The real client libraries, in processes of their own, against a server on loopback.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workers.hub_server import COMMIT, STRANGER, TOKEN, HubServer
from workers import hub, models
from workers.config import ModelConfig

ROOT = Path(__file__).parent.parent.parent
PICKLED = ("pytorch_model.bin", "model.gguf", "original/consolidated.00.pth", "original/model.safetensors")

# Answers questions, one JSON line each, until its input ends.
WORKER = """
import hashlib, json, os, sys
from workers import models
from workers.config import ModelConfig

def digest(config):
    model, tokenizer = models.load(config)
    found = hashlib.sha256(models.tokenizer_digest(tokenizer).encode())
    for tensor in model.state_dict().values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()

do = {"check": models.check, "load": digest, "weights": lambda c: models.weights_digest(c.path, c.revision),
      "pinned": lambda c: models.pinned(c).revision}
for line in sys.stdin:
    what, config, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    try:
        print(json.dumps(do[what](ModelConfig(**config))), flush=True)
    except ValueError as error:
        print(json.dumps({"error": str(error)}), flush=True)
"""

# Only fetches: starts fast.
FETCHER = """
from workers import hub
folder = hub.settings("acme/recall", None)
hub.fetch("acme/recall", folder.name, ["model.safetensors"])
"""


class Process:
    """A worker's process on a node whose Hub cache is `home`."""

    def __init__(self, code: str, url: str, home: Path) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        env["HF_HUB_DOWNLOAD_TIMEOUT"] = "300"  # the server holds files back until all processes have started
        self.log = (home.parent / f"log-{time.monotonic_ns()}").open("w+")
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code]
        self.popen = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=self.log, text=True)

    def ask(self, what: str, config: dict, token: str | None = None) -> None:
        self.popen.stdin.write(json.dumps([what, config, token]) + "\n")
        self.popen.stdin.flush()

    def answer(self):
        line = self.popen.stdout.readline()
        assert line, self.errors()
        return json.loads(line)

    def asked(self, what: str, config: dict, token: str | None = None):
        self.ask(what, config, token)
        return self.answer()

    def errors(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def close(self) -> int:
        self.popen.stdin.close()
        return self.popen.wait(60)


@pytest.fixture
def start(tmp_path):
    """Starts processes of one node, with one cache; none outlives the test."""
    (tmp_path / "home").mkdir()
    started = []

    def start(code: str, url: str) -> Process:
        started.append(Process(code, url, tmp_path / "home"))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()
        process.popen.wait()


@pytest.fixture
def repository(small_model, tmp_path) -> Path:
    """The small model as people publish theirs: beside other formats."""
    folder = shutil.copytree(small_model, tmp_path / "recall")
    for name in PICKLED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not to be read")
    return folder


def digest(path: Path) -> str:
    model, tokenizer = models.load(ModelConfig(str(path)))
    found = hashlib.sha256(models.tokenizer_digest(tokenizer).encode())
    for tensor in model.state_dict().values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def wait_for(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_a_node_fetches_weights_once_and_goes_on_without_a_network(start, repository, small_model):
    config = {"path": "acme/recall"}
    with HubServer({"acme/recall": repository}) as server:
        server.release.clear()
        workers = [start(WORKER, server.url) for _ in range(3)]
        for worker in workers:
            worker.ask("load", config)
        wait_for(lambda: server.count("HEAD", "model.safetensors") == 6)  # all three want them, none has them
        server.release.set()
        assert [worker.answer() for worker in workers] == [digest(small_model)] * 3
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert server.count("GET", file) == 1, file
        assert [server.count("GET", file) for file in (*PICKLED, "README.md")] == [0] * 5
        before = len(server.requests)
        pinned = {**config, "revision": workers[0].asked("pinned", config)}
        assert pinned["revision"] == COMMIT
        fetched = [path for _, path in server.requests[before:] if "/resolve/" in path]
        assert fetched == []  # to name the commit is one small question
        before = len(server.requests)
        assert workers[0].asked("load", pinned) == digest(small_model)
        assert server.requests[before:] == []  # a pinned model that is there needs no Hub
        assert {worker.close() for worker in workers} == {0}
    alone = start(WORKER, server.url)
    assert alone.asked("load", config) == digest(small_model)
    expected = hashlib.sha256(f"acme/recall@{COMMIT}".encode()).hexdigest()
    assert alone.asked("weights", config) == expected
    assert alone.asked("weights", pinned) == expected
    error = alone.asked("check", {"path": "acme/other"})["error"]
    assert "`hf download acme/other`" in error and "HF_HOME" in error and "\n" not in error


def test_the_others_go_on_when_the_process_that_fetches_is_killed(start, repository):
    with HubServer({"acme/recall": repository}) as server:
        server.release.clear()
        first = start(FETCHER, server.url)
        wait_for(lambda: server.count("GET", "model.safetensors") == 1)
        second = start(FETCHER, server.url)
        wait_for(lambda: server.count("HEAD", "model.safetensors") == 2)
        first.popen.send_signal(signal.SIGKILL)
        first.popen.wait()
        server.release.set()
        assert second.popen.wait(60) == 0, second.errors()
        assert server.count("GET", "model.safetensors") == 2


def test_what_is_refused_and_what_to_do_about_it(start, repository, small_model, tmp_path):
    gated = {"path": "acme/gated"}
    pickled = shutil.copytree(repository, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    coded = shutil.copytree(small_model, tmp_path / "coded")
    settings = json.loads((coded / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (coded / "config.json").write_text(json.dumps(settings))
    (coded / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    repositories = {"acme/gated": repository, "acme/pickled": pickled, "acme/coded": coded}
    unknown = "hf_" + "nObOdYsToKeN" * 3
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text(TOKEN)  # of a person who logged in here: not the job's
    with HubServer(repositories, gated=("acme/gated",)) as server:
        worker = start(WORKER, server.url)
        said = []
        for config, token, expected in [
            (gated, None, "accept its licence on its page and set HF_TOKEN"),
            (gated, STRANGER, "the account of the token in HF_TOKEN may not read it"),
            (gated, unknown, "the Hub refuses the token in HF_TOKEN"),
            ({"path": "acme/nothing"}, None, "the Hub has no repository of that name"),
            ({"path": "acme/nothing"}, TOKEN, "the Hub has no repository of that name"),
            ({"path": "acme/pickled", "revision": "v9"}, None, "no branch, tag or commit 'v9'"),
            ({"path": "acme/pickled"}, None, "pickled ones, .bin, are refused"),
            ({"path": "acme/coded"}, None, "brings Python code of its own, which is not run"),
        ]:
            error = worker.asked("check", config, token)["error"]
            assert expected in error and "\n" not in error
            said.append(error)
        assert worker.asked("load", {"path": "acme/pickled"})["error"] == said[6]
        assert worker.asked("check", gated, TOKEN) is None
        assert server.count("GET", "model.safetensors") == 0
        assert worker.asked("load", gated, TOKEN) == digest(small_model)
        assert worker.close() == 0
        assert server.count("GET", "pytorch_model.bin") == server.count("GET", "code.py") == 0
    assert not (tmp_path / "ran").exists()
    kept = [file.read_bytes() for file in (tmp_path / "home").rglob("*") if file.is_file() and file.name != "token"]
    for token in (TOKEN, STRANGER, unknown):
        assert token not in "".join(said) + worker.errors()
        assert not any(token.encode() in content for content in kept)


@pytest.mark.parametrize("path", ["models", "../up", "/abs/olute", "a/b/c", "owner/", "~/name", "owner/na me"])
def test_a_path_is_no_repository(path):
    assert not hub.is_repository(path)


def test_names_of_repositories():
    assert hub.is_repository("meta-llama/Llama-3.1-8B")
