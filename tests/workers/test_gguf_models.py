"""Models from GGUF files: what comes out of one, how often it is dequantised, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from namm_core import MemoryCache
from namm_core.policies import Streaming
from workers import gguf_models, models, node_cache
from workers.config import ModelConfig

gguf_files = pytest.importorskip("tests.workers.gguf_files", reason="the extra gguf is not installed")
ROOT = Path(__file__).parent.parent.parent
FILE = "tiny.gguf"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def llama():
    return gguf_files.model()


@pytest.fixture
def folder(tmp_path, llama) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    gguf_files.write(place / FILE, llama)
    return place


def config(folder: Path, **more) -> ModelConfig:
    return ModelConfig(str(folder), gguf=FILE, **more)


def test_a_model_comes_back_as_it_was_written(folder, llama, cache):
    models.check(config(folder))
    model, tokenizer = models.load(config(folder))
    assert type(model) is type(llama)
    loaded = model.state_dict()
    assert loaded.keys() == llama.state_dict().keys()
    for name, tensor in llama.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    assert model.config.rope_parameters["rope_theta"] == 20_000
    ids = tokenizer(text := "hello world, the cat sat on the mat", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == text
    assert len(ids[0]) == 9  # words, and the comma
    assert torch.allclose(model(ids).logits, llama(ids).logits, atol=1e-5)
    turn = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) == "<s>hello</s>"
    assert model.generation_config.eos_token_id == 1
    with MemoryCache(model, Streaming(budget=torch.tensor([4]), update_interval=8)) as memory:
        model(ids, past_key_values=memory)
        assert [len(head) for head in memory.kept_positions(1)[0]] == [4 + 1] * gguf_files.KV_HEADS


def test_quantised_weights_are_dequantised_to_the_type_that_was_asked_for(folder, llama, cache):
    gguf_files.write(folder / FILE, llama, quantised=True)
    for dtype in ("float32", "bfloat16"):
        model, _ = models.load(config(folder, dtype=dtype))
        assert model.dtype == getattr(torch, dtype)
        name = "model.layers.1.self_attn.q_proj.weight"
        step = llama.state_dict()[name].abs().max() / 127
        off = (model.state_dict()[name].float() - llama.state_dict()[name]).abs().max()
        assert 0 < off < (step if dtype == "float32" else 2 * step)
        assert not hasattr(model.config, "quantization_config")
    assert len(list((cache / "gguf").glob("tiny-*"))) == 2


def test_a_file_is_dequantised_once(folder, cache):
    first = gguf_models.folder(folder / FILE, "float32")
    written = (first / "model.safetensors").stat().st_mtime_ns
    shutil.copytree(folder, folder.parent / "copy")
    assert gguf_models.made(folder.parent / "copy" / FILE, "float32") == first  # its content names it, not its path
    models.load(config(folder.parent / "copy"))
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    gguf_files.write(folder / FILE, gguf_files.model(seed=1))
    assert gguf_models.made(folder / FILE, "float32") is None


def test_what_names_the_weights_is_the_file(folder, cache):
    found = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    pinned = models.pinned(config(folder))
    assert pinned == config(folder, sha256=found)
    assert models.weights_digest(str(folder), gguf=FILE) == found
    models.load(pinned)
    gguf_files.write(folder / FILE, gguf_files.model(seed=1))
    for attempt in (models.check, models.load):
        with pytest.raises(ValueError, match="are not those the job was written for") as error:
            attempt(pinned)
        assert "\n" not in str(error.value)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5000])


def header_alone(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def scrambled(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[24:400] = bytes(range(256)) + bytes(120)
    file.write_bytes(content)


def other_kind(file: Path) -> None:
    file.write_bytes(b"GIF89a" + bytes(1000))


def says(file: Path, key: str, number: int) -> None:
    """Writes another uint32 into the file's head."""
    content = file.read_bytes()
    at = content.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4  # behind the number of its type
    file.write_bytes(content[:at] + number.to_bytes(4, "little") + content[at + 4 :])


def many_blocks(file: Path) -> None:
    says(file, "block_count", 40_000)


def fewer_blocks(file: Path) -> None:
    says(file, "block_count", 1)


def wide(file: Path) -> None:
    says(file, "embedding_length", 1 << 20)


def wide_inside(file: Path) -> None:
    says(file, "feed_forward_length", 1 << 22)


def unknown_architecture(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"llama", b"lamma"))


DAMAGES = [truncated, header_alone, scrambled, other_kind, unknown_architecture]
DAMAGES += [many_blocks, fewer_blocks, wide, wide_inside]


@pytest.mark.timeout(60)  # transformers would build 40,000 layers
@pytest.mark.parametrize("spoil", DAMAGES)
def test_a_damaged_file_is_one_line_and_leaves_nothing(folder, cache, spoil):
    spoil(folder / FILE)
    for attempt in (models.check, models.load):
        with pytest.raises(ValueError, match="is no GGUF model that can be read") as error:
            attempt(config(folder))
        assert "\n" not in str(error.value)
    assert [file.name for file in (cache / "gguf").iterdir() if not file.name.endswith(".lock")] == []


def test_a_file_that_is_not_there_is_one_line(folder, cache):
    with pytest.raises(ValueError, match=r"holds no file other.gguf \(GGUF files there: tiny.gguf\)"):
        models.check(ModelConfig(str(folder), gguf="other.gguf"))
    with pytest.raises(ValueError, match="does not exist"):
        models.check(ModelConfig(str(folder / "nowhere"), gguf=FILE))
    with pytest.raises(ValueError, match="model.revision is for models of the Hub"):
        models.check(config(folder, revision="main"))


@pytest.mark.parametrize("name", ["../tiny.gguf", "sub/tiny.gguf", "tiny.bin", ""])
def test_the_name_is_that_of_a_gguf_file_in_the_folder(name):
    with pytest.raises(ValueError, match="must be the name of a .gguf file"):
        ModelConfig("models", gguf=name)


def test_a_cache_that_cannot_be_written_is_one_line(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAMM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be written .*NAMM_CACHE names another"):
        models.check(config(folder))


def test_a_missing_package_is_one_line(folder, tmp_path):
    """In a process that sees all installed packages but two."""
    installed, fewer = Path(torch.__file__).parent.parent, tmp_path / "site-packages"
    fewer.mkdir()
    for entry in installed.iterdir():
        if not entry.name.startswith(("gguf", "accelerate")):
            (fewer / entry.name).symlink_to(entry)
    code = (
        f"import sys; sys.path = [p for p in sys.path if p != {str(installed)!r}] + [{str(fewer)!r}]\n"
        "from workers import models; from workers.config import ModelConfig\n"
        f"try: models.check(ModelConfig({str(folder)!r}, gguf={FILE!r}))\n"
        "except ValueError as error: print(error)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NAMM_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    expected = "tiny.gguf needs the package gguf and accelerate on every node: pip install 'namm[gguf]'\n"
    assert done.stdout == expected, done.stderr


# The cache's folders -----------------------------------------------------------------------------------------

MAKER = """
import sys, time
from pathlib import Path
from workers import node_cache

def make(part):
    print("making", flush=True)
    (part / "first").write_text("1")
    sys.stdin.readline()
    (part / "second").write_text("2")

node_cache.make_once(Path(sys.argv[1]), make)
print("there", flush=True)
"""


def maker(folder: Path) -> subprocess.Popen:
    pipe = subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", MAKER, str(folder)], env=env, stdin=pipe, stdout=pipe, text=True)


def test_two_processes_make_a_folder_once(tmp_path):
    folder = tmp_path / "made"
    first = maker(folder)
    assert first.stdout.readline() == "making\n"
    second = maker(folder)
    assert not folder.exists()
    assert first.communicate("\n", timeout=60)[0] == "there\n"
    assert second.communicate("\n", timeout=60)[0] == "there\n"  # it waited, and made nothing
    assert sorted(file.name for file in folder.iterdir()) == ["first", "second"]


def test_a_process_killed_on_the_way_leaves_nothing_that_counts(tmp_path):
    folder = tmp_path / "made"
    first = maker(folder)
    assert first.stdout.readline() == "making\n"
    first.kill()
    first.communicate()
    assert not folder.exists()
    again = maker(folder)
    assert again.communicate("\n", timeout=60)[0] == "making\nthere\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".made.lock", "made"]


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def make(part: Path) -> None:
        (part / "first").write_text("1")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        node_cache.make_once(tmp_path / "made", make)
    assert [file.name for file in tmp_path.iterdir() if file.suffix != ".lock"] == []
