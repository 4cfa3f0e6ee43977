"""Models from a folder: what is refused, what names the weights, and layers that live on more than one device."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig
from namm_core.answering import answer
from namm_core.policies import H2O, Oracle, Random, Streaming
from workers import models
from workers.config import ModelConfig

INTERVAL = 64


@pytest.fixture
def folder(small_model, tmp_path):
    return shutil.copytree(small_model, tmp_path / "model")


def settings(folder, **more) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


# What a model's folder may hold ------------------------------------------------------------------------------


def pickle_only(folder) -> None:
    state = models.load(ModelConfig(str(folder)))[0].state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def pickled_shard(folder) -> None:
    pickle_only(folder)
    index = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickle_by_name(folder) -> None:
    settings(folder, transformers_weights="adapter_model.bin")
    (folder / "adapter_model.bin").write_bytes(b"")


def shard_elsewhere(folder) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def code_of_its_own(folder) -> None:
    settings(folder, model_type="own", auto_map={"AutoConfig": "code.Config"})


def tokenizer_of_its_own(folder) -> None:
    file = folder / "tokenizer_config.json"
    auto = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | auto))


def adapter(folder) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/elses"}))


@pytest.mark.parametrize(
    "spoil, said",
    [
        (pickle_only, "lacks weights in safetensors format (model.safetensors); pickled ones, .bin, are refused"),
        (pickled_shard, "names weights that are no safetensors file in it"),
        (pickle_by_name, "names weights that are no safetensors file in it"),
        (shard_elsewhere, "names weights that are no safetensors file in it"),
        (code_of_its_own, "brings Python code of its own, which is not run"),
        (tokenizer_of_its_own, "brings Python code of its own, which is not run"),
        (adapter, "holds an adapter"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    ],
)
def test_a_folder_is_refused(folder, spoil, said):
    """By the check, before a worker starts, and by a worker that loads it."""
    (folder / "code.py").write_text("raise SystemExit('code of a model was run')\n")
    models.load(ModelConfig(str(folder)))
    spoil(folder)
    for attempt in (models.check, models.load):
        with pytest.raises(ValueError) as error:
            attempt(ModelConfig(str(folder)))
        assert said in str(error.value) and "\n" not in str(error.value)


def test_torn_weights_are_one_line(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="could not be loaded: .*incomplete"):
        models.load(ModelConfig(str(folder)))


def test_code_beside_a_model_that_transformers_knows_is_not_run(folder):
    settings(folder, auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text("raise SystemExit('code of a model was run')\n")
    model, _ = models.load(ModelConfig(str(folder)))
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"


def test_a_configuration_does_not_choose_the_attention(folder):
    settings(folder, attn_implementation="kernels-community/flash-attn")  # code that would come from the Hub
    model, _ = models.load(ModelConfig(str(folder)))
    assert model.config._attn_implementation == "sdpa"


def test_shards_are_loaded(folder, small_model):
    model, _ = models.load(ModelConfig(str(folder)))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    assert len(models.weight_files(folder)) > 1
    again, _ = models.load(ModelConfig(str(folder)))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


# What names the weights --------------------------------------------------------------------------------------


def test_pinned_names_the_weights_of_a_folder(folder):
    pinned = models.pinned(ModelConfig(str(folder)))
    assert pinned.sha256 == models.weights_digest(str(folder)) and pinned.revision is None
    assert models.pinned(pinned) == pinned
    models.check(pinned)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    for attempt in (models.check, models.load):
        with pytest.raises(ValueError, match="not those the job was written for"):
            attempt(pinned)


def test_a_missing_folder_with_a_digest_is_not_looked_for_on_the_hub(small_model):
    pinned = models.pinned(ModelConfig(str(small_model)))
    with pytest.raises(ValueError, match="^model folder models/recall-tiny does not exist; `make model`"):
        models.load(dataclasses.replace(pinned, path="models/recall-tiny"))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"sha256": "0" * 64, "revision": "main"}, "give one"),
        ({"device_map": "auto", "device": "cuda"}, "leave device at auto"),
    ],
)
def test_settings_that_contradict_each_other(settings, said):
    with pytest.raises(ValueError, match=said):
        ModelConfig("owner/name", **settings)


def test_a_revision_of_a_folder(small_model):
    with pytest.raises(ValueError, match="model.revision is for models of the Hub"):
        models.check(ModelConfig(str(small_model), revision="main"))


# Layers on more than one device ------------------------------------------------------------------------------


def namm(rows: int) -> Namm:
    theta = torch.randn(rows, 4172, generator=torch.Generator().manual_seed(1)) * 0.065
    statistics = FeatureStatistics(torch.zeros(17), torch.ones(17), 1.0)
    return Namm(NammConfig(update_interval=INTERVAL), theta, statistics)


POLICIES = {
    "full": lambda rows: None,
    "namm": namm,
    "oracle": lambda rows: Oracle([torch.tensor([9, 70])] * rows, INTERVAL),
    "h2o": lambda rows: H2O(torch.tensor([40] * rows), INTERVAL),
    "streaming": lambda rows: Streaming(torch.tensor([40] * rows), INTERVAL),
    "random": lambda rows: Random(torch.tensor([40] * rows), INTERVAL),
}


def answers(model, policy):
    """Answers of three rows of unequal length, and what the cache holds afterwards."""
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, 700, (n,), generator=random) for n in (150, 131, 150)]
    references = [torch.randint(4, 700, (2,), generator=random) for _ in prompts]
    cache = None if policy is None else MemoryCache(model, policy)
    found = answer(model, prompts, references, cache, max_new_tokens=3)
    if cache is None:
        return found, []
    cache.detach()
    cache.reorder_cache(torch.tensor([2, 0, 1], device=model.device))
    return found, [[h.tolist() for row in cache.kept_positions(i) for h in row] for i in range(len(cache.layers))]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_model_read_layer_by_layer_from_the_disk_answers_the_same(small_model, tmp_path, policy):
    pytest.importorskip("accelerate")
    plain, _ = models.load(ModelConfig(str(small_model)))
    device_map = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    device_map |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    spread = AutoModelForCausalLM.from_pretrained(
        small_model, dtype=torch.float32, device_map=device_map, offload_folder=tmp_path
    ).eval()
    assert next(spread.model.layers[1].parameters()).device.type == "meta"
    assert answers(spread, POLICIES[policy](3)) == answers(plain, POLICIES[policy](3))
    with pytest.raises(ValueError, match="does not fit into"):
        models.check_fits(spread)


def test_device_map_gives_the_same_model(small_model):
    pytest.importorskip("accelerate")
    config = ModelConfig(str(small_model), ntk_alpha=4, device="auto" if torch.cuda.is_available() else "cpu")
    plain, _ = models.load(config)
    spread, _ = models.load(dataclasses.replace(config, device="auto", device_map="auto"))
    assert spread.device.type == plain.device.type
    assert answers(spread, namm(3)) == answers(plain, namm(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the CPU")
@pytest.mark.parametrize("policy", POLICIES)
def test_layers_on_two_devices(small_model, policy):
    hooks = pytest.importorskip("accelerate.hooks")
    plain, _ = models.load(ModelConfig(str(small_model), device="cpu"))
    spread, _ = models.load(ModelConfig(str(small_model), device="cpu"))
    layer = spread.model.layers[1].to("cuda")  # the CPU stands for another GPU
    hook = hooks.AlignDevicesHook(execution_device="cuda", io_same_device=True, skip_keys="past_key_values")
    hooks.add_hook_to_module(layer, hook)
    (expected, _), (found, _) = answers(plain, POLICIES[policy](3)), answers(spread, POLICIES[policy](3))
    assert [a.logprob for a in found] == pytest.approx([a.logprob for a in expected], abs=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU beside the CPU")
def test_statistics_of_layers_on_two_devices():
    averages = torch.rand(5, 17)
    here, there = FeatureStatistics.of(averages), FeatureStatistics.of(averages.cuda())
    assert there.mean.device.type == "cpu" and torch.allclose(here.merge(there).mean, here.mean)
