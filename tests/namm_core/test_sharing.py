"""A saved NAMM in other people's hands: through `custom_generate`, with nothing of this package installed."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig, sharing

IDS = torch.randint(3, 700, (2, 150), generator=torch.Generator().manual_seed(0))
NEW = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1}


@pytest.fixture(scope="module")
def model(small_model):
    return AutoModelForCausalLM.from_pretrained(small_model).eval()


@pytest.fixture(scope="module")
def namm() -> Namm:
    random = torch.Generator().manual_seed(1)
    statistics = FeatureStatistics(torch.rand(17, generator=random) / 9, torch.rand(17, generator=random) / 9, 1000)
    return Namm(NammConfig(update_interval=32), torch.randn(4172, generator=random) * 0.1, statistics)


@pytest.fixture(scope="module")
def saved(namm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "namm"
    namm.save_pretrained(folder, card="---\nlicense: apache-2.0\n---\n# A memory\n")
    return folder


def through(folder: Path, model, ids=IDS, **settings):
    return model.generate(ids, custom_generate=str(folder), trust_remote_code=True, **NEW, **settings)


def test_the_folder_has_what_a_repository_of_the_hub_has(saved, namm):
    assert {f.name for f in saved.iterdir()} == {"config.json", "model.safetensors", "README.md", "custom_generate"}
    assert {"generate.py", "requirements.txt"} <= {f.name for f in (saved / "custom_generate").iterdir()}
    again = Namm.from_pretrained(saved)
    assert again.config == namm.config and torch.equal(again.theta, namm.theta)
    assert torch.equal(again.statistics.mean, namm.statistics.mean) and again.statistics.count == 1000


def test_generate_gives_what_the_memory_gives_and_leaves_the_model_as_it_was(saved, namm, model):
    with MemoryCache(model, namm) as cache:
        wanted = model.generate(IDS, past_key_values=cache, **NEW)
    got = through(saved, model, return_dict_in_generate=True)
    assert torch.equal(got.sequences, wanted)
    kept = got.past_key_values.kept_counts()
    assert torch.equal(kept, cache.kept_counts()) and kept.float().mean() < 140
    assert model.config._attn_implementation == "sdpa"
    assert not torch.equal(through(saved, model), model.generate(IDS, **NEW))  # it does forget


def test_the_attention_is_set_back_when_generation_fails(saved, model):
    def broken(ids, scores):
        raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        through(saved, model, logits_processor=[broken])
    assert model.config._attn_implementation == "sdpa"


def test_a_conversation_goes_on_with_the_memory_of_the_answer_before(saved, namm, model):
    more = torch.randint(3, 700, (2, 40), generator=torch.Generator().manual_seed(2))
    with MemoryCache(model, namm) as cache:
        text = torch.cat([model.generate(IDS, past_key_values=cache, **NEW), more], dim=1)
        wanted = model.generate(text, past_key_values=cache, **NEW)
    first = through(saved, model, return_dict_in_generate=True)
    memory = first.past_key_values
    again = through(saved, model, text, past_key_values=memory, return_dict_in_generate=True)
    assert again.past_key_values is memory and torch.equal(again.sequences, wanted)
    assert memory.fed == cache.fed and torch.equal(memory.kept_counts(), cache.kept_counts())
    assert model.config._attn_implementation == "sdpa"


def test_a_memory_that_is_in_use_stays_in_use(saved, namm, model):
    """One of the installed package, on a model that carries its attention function."""
    with MemoryCache(model, namm) as cache:
        wanted = through(saved, model, past_key_values=cache)
        assert model.config._attn_implementation == "namm" and cache.fed == [161, 161]
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(wanted, through(saved, model))


def test_other_caches_are_refused(saved, model):
    with pytest.raises(ValueError, match="DynamicCache, which forgets nothing"):
        through(saved, model, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="nothing to remember"):
        through(saved, model, use_cache=False)
    with pytest.raises(ValueError, match="trust_remote_code"):
        model.generate(IDS, custom_generate=str(saved), trust_remote_code=False, **NEW)


ALONE = """
import sys
sys.path[:] = [p for p in sys.path if "site-packages" not in p and "dist-packages" not in p] + [sys.argv[1]]
import importlib.util, torch
from transformers import AutoModelForCausalLM
assert not any(importlib.util.find_spec(name) for name in ("namm_core", "workers", "orchestrator"))
model = AutoModelForCausalLM.from_pretrained(sys.argv[2]).eval()
ids = torch.randint(3, 700, (2, 150), generator=torch.Generator().manual_seed(0))
out = model.generate(ids, custom_generate=sys.argv[3], trust_remote_code=True, max_new_tokens=12, do_sample=False,
                     pad_token_id=1, return_dict_in_generate=True)
print(out.sequences.tolist(), out.past_key_values.kept_counts().tolist())
"""


def alone(saved: Path, small_model: Path, tmp_path: Path) -> str:
    """What a process says that sees all installed packages but this one."""
    import torch as installed

    site = Path(installed.__file__).parents[1]
    others = tmp_path / "site"
    others.mkdir()
    for path in site.iterdir():
        if "namm" not in path.name and path.suffix != ".pth":
            (others / path.name).symlink_to(path)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {
        "HF_HOME": str(tmp_path),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-S", "-c", ALONE, str(others), str(small_model), str(saved)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_works_where_nothing_of_this_package_is_installed(saved, namm, model, small_model, tmp_path):
    with MemoryCache(model, namm) as cache:
        wanted = model.generate(IDS, past_key_values=cache, **NEW)
    assert alone(saved, small_model, tmp_path) == f"{wanted.tolist()} {cache.kept_counts().tolist()}"


def test_the_copied_code_names_no_module_of_this_package(saved):
    for file in (saved / "custom_generate").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] != "namm_core", file.name
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "namm_core" for alias in node.names), file.name


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    class Broken(dict):
        def items(self):
            yield "config.json", b"{}"
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        sharing.write(tmp_path / "new", Broken())
    assert not list(tmp_path.iterdir())
    sharing.write(tmp_path / "new", {"config.json": b"old", "custom_generate/generate.py": b"old"})
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match="full"):
        sharing.write(tmp_path / "new", Broken())
    assert (tmp_path / "new" / "config.json").read_bytes() == b"old"
    sharing.write(tmp_path / "new", {"config.json": b"new", "README.md": b"new"})
    assert {f.name: f.read_bytes() for f in (tmp_path / "new").iterdir() if f.is_file()} == {
        "config.json": b"new",
        "README.md": b"new",
        "notes.txt": b"mine",
    }
    assert [f.name for f in tmp_path.iterdir()] == ["new"]


def test_the_copy_asks_for_the_range_of_transformers_that_the_package_asks_for():
    """pyproject.toml says it: a copy that allows more breaks in other people's hands at a release not yet made."""
    text = (Path(sharing.__file__).parents[1] / "pyproject.toml").read_text()
    ours = {line.split(">=")[0]: line for line in re.findall(r'^ +"([a-z]+>=[^"]+)"', text, flags=re.M)}
    for requirement in sharing.REQUIREMENTS.split():
        assert requirement == ours[requirement.split(">=")[0]]


PLUGIN = """
from namm_core.scoring.base_scorer import BaseScorer

class Sinks(BaseScorer):
    def layout(self, config):
        return {"w": (config.embedding,), "b": (1,)}

    def score(self, prepared, embeddings, widths=None):
        return (embeddings * prepared["w"][:, None, None]).sum(-1) + prepared["b"][:, None]
"""

WITH_PLUGIN = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from namm_core import MemoryCache, Namm, NammConfig, plugins

plugins.extend("namm_core.scoring.scorers", Path(sys.argv[1]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[2]).eval()
namm = Namm(NammConfig(update_interval=32, scorer="sinks"), torch.linspace(-1, 1, 26))
namm.save_pretrained(sys.argv[3])
ids = torch.randint(3, 700, (2, 150), generator=torch.Generator().manual_seed(0))
with MemoryCache(model, namm) as cache:
    out = model.generate(ids, cache=cache, max_new_tokens=12, do_sample=False, pad_token_id=1)
print(out.tolist(), cache.kept_counts().tolist())
"""


def test_a_scorer_from_outside_travels_with_its_weights(small_model, tmp_path):
    """Its own file comes along; where the folder goes, nobody has the plug-in, nor this package."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "sinks.py").write_text(PLUGIN)
    saved = tmp_path / "saved"
    environment = {**os.environ, "PYTHONPATH": str(Path(sharing.__file__).parents[1])}
    command = [sys.executable, "-c", WITH_PLUGIN, str(plugins), str(small_model), str(saved)]
    here = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert here.returncode == 0, here.stderr
    assert (saved / "custom_generate" / "scoring_scorers_sinks.py").is_file()
    assert not list((saved / "custom_generate").glob("*backward_attention*")), "the scorer that is not used stays home"
    assert alone(saved, small_model, tmp_path) == here.stdout.strip()
    kept = json.loads("[[[" + here.stdout.split("[[[")[1])
    assert max(head for layer in kept for row in layer for head in row) < 150, "the memory should forget"
