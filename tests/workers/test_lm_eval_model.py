"""The model `namm` of `lm_eval`: with a memory that keeps everything it is `hf`, with another the memory is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason='lm_eval is not installed: pip install "namm[benchmarks]"')
pytest.importorskip("accelerate", reason="lm_eval's models of transformers need accelerate")
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from namm_core import MemoryCache, Namm, policies
from workers import lm_eval_model
from workers.config import ModelConfig
from workers.models import load
from workers.tasks import words
from workers.tasks.sources.recall import RecallConfig, RecallTasks

ROOT = Path(__file__).parent.parent.parent
CITIES = [" " + city for city in words.CITIES]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    """Recall questions of unequal length, with all cities as choices."""
    found = []
    for tokens in (150, 200):
        tasks = RecallTasks(RecallConfig(tokens=tokens, kinds=("residence",), facts=6))
        for index in range(3):
            sample = tasks.sample("residence", "heldout", index)
            found.append({"prompt": sample.prompt, "answer": sample.answers[0]})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records) -> Path:
    """A task of each kind of request, on the same records."""
    place = tmp_path_factory.mktemp("tasks")
    data = place / "rows.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(place / "cache")},
        "test_split": "test",
    }
    metric = {"aggregation": "mean", "higher_is_better": True}
    tasks = {
        "write": {
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match", **metric}],
            "filter_list": [
                {"name": "bare", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
            ],
        },
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "doc_to_choice": list(words.CITIES),
            "metric_list": [{"metric": "acc", **metric}, {"metric": "acc_norm", **metric}],
        },
        "read": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{prompt}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    }
    for name, task in tasks.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump(common | {"task": name} | task))
    return place


def table(model: str, folder: Path, batch: int, tasks: tuple[str, ...], **arguments: Any) -> dict[str, Any]:
    """Scores by task and metric, and each request's responses by task and record."""
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=batch,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    scores = {t: {k: v for k, v in found["results"][t].items() if "," in k and "_stderr" not in k} for t in tasks}
    return {"scores": scores, "responses": {t: [s["resps"] for s in found["samples"][t]] for t in tasks}}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_memory_that_keeps_everything_is_hf(folder, small_model, batch):
    """Texts and scores are equal; log-likelihoods but for the order in which sums are made."""
    tasks = ("write", "choose", "read")
    stock = table("hf", folder, batch, tasks, pretrained=str(small_model))
    ours = table("namm", folder, batch, tasks, pretrained=str(small_model), policy="full", update_interval=64)
    assert stock["scores"]["write"] == ours["scores"]["write"]
    assert stock["scores"]["choose"] == ours["scores"]["choose"]
    assert stock["scores"]["choose"]["acc,none"] > 0.5  # chance is 1 in 12
    assert stock["responses"]["write"] == ours["responses"]["write"]
    for task in ("choose", "read"):
        for one, other in zip(stock["responses"][task], ours["responses"][task], strict=True):
            flat = [torch.tensor(_numbers(r), dtype=torch.float64) for r in (one, other)]
            assert torch.allclose(*flat, rtol=1e-5, atol=1e-4)
    for metric, value in stock["scores"]["read"].items():
        assert ours["scores"]["read"][metric] == pytest.approx(value, rel=1e-5)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for part in value for number in _numbers(part)]
    return [float(value)]


@pytest.fixture(scope="module")
def memory() -> Path:
    """The memory that this repository ships, evolved at an NTK alpha of 128."""
    return ROOT / "models" / "recall-namm"


@pytest.fixture(scope="module")
def long() -> list[str]:
    """Prompts of two and more updates of the shipped memory."""
    tasks = RecallTasks(RecallConfig(tokens=400, kinds=("residence",), facts=6))
    return [tasks.sample("residence", "heldout", index).prompt for index in range(3)]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, one, i, ("own", i, 1)) for i, one in enumerate(arguments)]


def test_multiple_choice_is_scored_with_the_memory_in_place(small_model, memory, long):
    """As if the context had been read and the continuation then fed token by token; the stretch is the card's."""
    namm = Namm.from_pretrained(memory)
    model, tokenizer = load(ModelConfig(str(small_model), ntk_alpha=128))
    ours = lm_eval_model.NammLM(str(small_model), memory=str(memory), batch_size=2, device="cpu")
    assert (ours.ntk_alpha, ours.max_length) == (128, 256 * 128)
    asked = [(prompt, city + ".\nWhere") for prompt in long for city in CITIES[:2]]
    got = ours.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True)
    full, forgets = [], []
    for (prompt, text), (ours_says, _) in zip(asked, got, strict=True):
        context, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
        continuation = whole[len(context) :]
        assert whole[: len(context)] == context and len(continuation) == 3
        for keep, found in ((None, full), (namm, forgets)):
            found.append(_token_by_token(model, keep, context, continuation))
        assert ours_says == pytest.approx(forgets[-1], abs=1e-3)
    assert max(abs(a - b) for a, b in zip(full, forgets, strict=True)) > 0.05  # what is forgotten shows


@torch.no_grad()
def _token_by_token(model, policy, context: list[int], continuation: list[int]) -> float:
    cache = MemoryCache(model, policies.named("full")() if policy is None else policy)
    with cache:
        logits = model(torch.tensor([context]), past_key_values=cache, use_cache=True).logits[0, -1]
        total = 0.0
        for token in continuation:
            total += float(logits.log_softmax(-1)[token])
            logits = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]
    return total


def test_generation_is_that_of_the_memory(small_model, memory, long):
    namm = Namm.from_pretrained(memory)
    model, tokenizer = load(ModelConfig(str(small_model), ntk_alpha=128))
    ours = lm_eval_model.NammLM(str(small_model), memory=str(memory), batch_size=3, device="cpu")
    prompts = [long[0], long[1][:700], long[2]]  # padded on the left
    settings = {"until": ["\n\n"], "max_gen_toks": 6}
    got = ours.generate_until(requests("generate_until", [(p, settings) for p in prompts]), disable_tqdm=True)
    for prompt, text in zip(prompts, got, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with MemoryCache(model, namm) as cache:
            answer = model.generate(ids, past_key_values=cache, max_new_tokens=6, do_sample=False)
        assert text == tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True).split("\n\n")[0]
    stock = lm_eval_model.NammLM(str(small_model), policy="full", ntk_alpha=128, device="cpu")
    after = stock.loglikelihood(requests("loglikelihood", [(long[0], CITIES[0])]), disable_tqdm=True)
    before = ours.loglikelihood(requests("loglikelihood", [(long[0], CITIES[0])]), disable_tqdm=True)
    assert after != before


def test_a_chat_template_goes_around_prompts(folder, small_model, tmp_path):
    """As with `hf`: equal texts where everything is kept."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_model)
    tokenizer.chat_template = "{% for m in messages %}({{ m['content'] }}){% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    given = {"pretrained": str(small_model), "tokenizer": str(tmp_path)}
    found = []
    for model, more in (("hf", {}), ("namm", {"policy": "full"})):
        out = lm_eval.simple_evaluate(
            model=model,
            model_args=given | more,
            tasks=["write"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            device="cpu",
            bootstrap_iters=0,
            apply_chat_template=True,
        )
        found.append([(sample["arguments"][0][0], sample["resps"]) for sample in out["samples"]["write"]])
    assert found[0] == found[1]
    assert found[0][0][0].endswith("?)")


def test_policies_take_budgets_and_options(small_model):
    found = lm_eval_model.NammLM(
        str(small_model), policy="snapkv", budget=0.2, update_interval=32, window=8, device="cpu"
    )
    assert (found.policy.budget, found.policy.update_interval, found.policy.window) == (0.2, 32, 8)
    assert found.get_model_info()["memory_policy"] == "SnapKV"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "give memory=PATH, a saved NAMM, or policy=NAME"),
        ({"memory": "a", "policy": "full"}, "one of them"),
        ({"policy": "snapvk"}, "unknown policy 'snapvk'; did you mean 'snapkv'"),
        ({"policy": "snapkv"}, "the policy snapkv needs budget=..."),
        ({"memory": "models/recall-namm", "budget": 0.2}, "a NAMM decides itself how much it keeps"),
        ({"policy": "snapkv", "budget": 0.2, "kernel": 4}, "kernel must be odd, not 4"),
        ({"policy": "snapkv", "budget": 0.2, "window": "many"}, "window"),
        ({"policy": "snapkv", "budget": 0.2, "plugins": "nowhere"}, "nowhere"),
        ({"policy": "snapkv", "budget": 1.5}, "a budget as a fraction lies above 0 and at most at 1"),
        ({"policy": "full", "budget": 0.5}, "policy full takes no budget"),
        ({"policy": "oracle"}, "oracle must be told where the answers are"),
        ({"memory": "models/recall-small"}, "model.safetensors holds no tensor named theta"),
        ({"policy": "full", "ntk_alpha": -1}, "ntk_alpha must be a positive number, not -1"),
    ],
)
def test_wrong_arguments_are_one_line(small_model, monkeypatch, arguments, said):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError) as error:
        lm_eval_model.NammLM(str(small_model), device="cpu", **arguments)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command(folder, small_model, memory, tmp_path):
    """`lm_eval`'s own command line, with the model in its registry, and a refusal of one line."""
    program = [sys.executable, "-m", "workers.lm_eval_model", "--include_path", str(folder), "--tasks", "choose"]
    program += ["--limit", "2", "--device", "cpu", "--output_path", str(tmp_path)]
    given = ["--model", "namm", "--model_args", f"pretrained={small_model},memory={memory}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*program, *given], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "|choose|" in done.stdout
    written = json.loads(next(tmp_path.glob("**/results*.json")).read_text())
    assert written["config"]["memory_ntk_alpha"] == 128 and written["config"]["memory_policy"] == "Namm"
    given[-1] = f"pretrained={small_model},policy=tova"
    done = subprocess.run([*program, *given], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "lm_eval: model_args: the policy tova needs budget=..., a fraction or a number of tokens"
    )
    assert "Traceback" not in done.stderr
