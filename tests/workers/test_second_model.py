"""The second trained model: a larger Qwen3 of other numbers of layers, heads and head size, with the same tokenizer."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Qwen3ForCausalLM

from namm_core import MemoryCache, Namm
from namm_core.policies import Full
from workers import models
from workers.config import ModelConfig
from workers.pretraining import language as pretrain
from workers.tasks.sources.recall import KINDS, RecallConfig, RecallTasks

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "models" / "recall-qwen3"
SHORT = RecallConfig(tokens=120, facts=4, topic_words=8)
CACHE = "cache" if "cache" in inspect.signature(Qwen3ForCausalLM.forward).parameters else "past_key_values"
LENGTHS = (700, 389, 60)  # tokens of the prompts that are read together


@pytest.fixture(scope="module")
def second():
    """(the shipped model, its tokenizer), stretched as its job stretches it"""
    settings = yaml.safe_load((ROOT / "configs" / "recall-qwen3.yaml").read_text())["model"]
    return models.load(ModelConfig(**(settings | {"path": str(FOLDER)})))


@pytest.fixture(scope="module")
def first(small_model):
    return models.load(ModelConfig(str(small_model)))


def prompts(tokenizer) -> list[torch.Tensor]:
    """Real prompts of unequal length."""
    found = []
    for tokens in LENGTHS:
        tasks = RecallTasks(RecallConfig(tokens=tokens, facts=2))
        found.append(tokenizer(tasks.sample("colour", "validation", 0).prompt, return_tensors="pt")["input_ids"][0])
    return found


def test_training_writes_a_qwen3_that_loads(tmp_path, capsys):
    assert pretrain.main(["--model", "qwen3", "--out", str(tmp_path / "model"), "--steps", "2"]) == 0
    assert "step 2/2" in capsys.readouterr().out
    model, _ = models.load(ModelConfig(str(tmp_path / "model")))
    assert type(model) is Qwen3ForCausalLM
    shipped, written = (json.loads((at / "config.json").read_text()) for at in (FOLDER, tmp_path / "model"))
    assert written | {"transformers_version": ""} == shipped | {"transformers_version": ""}


def test_it_is_another_model(first, second):
    """Four times the parameters; other layers, heads, KV heads, group size and head size; the same tokenizer."""
    (llama, tokenizer), (qwen3, other) = first, second
    assert qwen3.num_parameters() >= 4 * llama.num_parameters()
    for name in ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"):
        assert getattr(qwen3.config, name) != getattr(llama.config, name), name
    group = [model.config.num_attention_heads // model.config.num_key_value_heads for model in (llama, qwen3)]
    assert group[0] != group[1]
    assert models.tokenizer_digest(other) == models.tokenizer_digest(tokenizer)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4 * 2**20


HARD = pytest.mark.xfail(strict=True, reason="two hops are hardly learnt: 0.39 at 120 tokens (models/recall-qwen3)")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=HARD) if kind == "journey" else kind for kind in KINDS])
def test_it_solves_short_prompts(kind, second):
    """As shipped, without the stretch: 0.85 of 40 validation samples."""
    model, tokenizer = models.load(ModelConfig(str(FOLDER)))
    tasks, right = RecallTasks(SHORT), 0
    for index in range(40):
        sample = tasks.sample(kind, "validation", index)
        ids = tokenizer(sample.prompt, return_tensors="pt")["input_ids"]
        wanted = tokenizer(sample.completion)["input_ids"]
        written = model.generate(ids, max_new_tokens=len(wanted), do_sample=False)[0, ids.shape[1] :]
        right += written.tolist() == wanted
    assert right >= 34


@pytest.mark.parametrize("side", ["left", "right"])
def test_keeping_everything_is_the_stock_model(second, side):
    """Logits of every real token of rows of unequal length, each against the stock model alone: within 1e-5.

    In float64, where rounding is out of the way: logits reach 16, and the stock model's own two ways to attend (sdpa,
    eager) are 1.2e-5 apart in float32.
    """
    model, tokenizer = copy.deepcopy(second[0]).double(), second[1]
    rows = prompts(tokenizer)
    ids, mask = torch.full((len(rows), max(LENGTHS)), tokenizer.pad_token_id), torch.zeros(len(rows), max(LENGTHS))
    places = [slice(-len(row), None) if side == "left" else slice(len(row)) for row in rows]
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[i, place], mask[i, place] = row, 1
    at = (mask.cumsum(-1) - 1).clamp(min=0).long()
    with torch.no_grad(), MemoryCache(model, Full(128)) as cache:
        ours = model(ids, attention_mask=mask.long(), position_ids=at, **{CACHE: cache}).logits
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        torch.testing.assert_close(ours[i, place], model(row[None]).logits[0], atol=1e-5, rtol=0)


def test_the_memory_of_the_first_model_runs_on_the_second(second, small_model):
    """Unchanged: its 4,172 numbers serve 4 layers of 3 KV heads, and forget something in each layer."""
    model, tokenizer = second
    (ids, *_) = prompts(tokenizer)
    with torch.no_grad(), MemoryCache(model, Namm.from_pretrained(small_model.parent / "recall-namm")) as cache:
        model(ids[None], **{CACHE: cache})
        held = [[len(head) for head in cache.kept_positions(layer)[0]] for layer in range(4)]
    assert [len(heads) for heads in held] == [3, 3, 3, 3]
    assert all(sum(heads) < 3 * len(ids) for heads in held)
