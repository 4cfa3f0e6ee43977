"""The recall tasks, and the shipped small model that is meant to solve them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.pretraining import language as pretrain
from workers.tasks import SPLITS, words
from workers.tasks.sources.recall import KINDS, RecallConfig, RecallTasks

FOLDER = Path(__file__).parents[2] / "models" / "recall-small"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [128, 1032])
def test_prompts_have_the_configured_length_and_one_token_per_piece(kind, tokens, tokenizer):
    tasks = RecallTasks(RecallConfig(tokens=tokens, facts=5, topic_words=8, kinds=(kind,)))
    for index in range(5):
        prompt = tasks.sample(kind, "train", index).prompt
        ids = tokenizer(prompt)["input_ids"]
        assert len(ids) == tokens
        assert tokenizer.decode(ids) == prompt


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_a_pure_function_of_config_and_arguments(kind):
    config = RecallConfig(tokens=300, kinds=(kind,))
    first, again = RecallTasks(config), RecallTasks(config)
    again.sample(kind, "heldout", 7)
    assert first.sample(kind, "train", 3) == again.sample(kind, "train", 3)
    other = RecallTasks(RecallConfig(tokens=300, kinds=(kind,), seed=1))
    assert first.sample(kind, "train", 3).prompt != other.sample(kind, "train", 3).prompt


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_prompt(kind):
    tasks = RecallTasks(RecallConfig(tokens=200, facts=4, topic_words=8, kinds=(kind,)))
    prompts = {split: {tasks.sample(kind, split, i).prompt for i in range(60)} for split in SPLITS}
    assert all(len(rows) == 60 for rows in prompts.values())
    assert len(set.union(*prompts.values())) == 180


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"latest", "topic"}))
def test_the_relevant_text_alone_says_the_answer(kind):
    tasks = RecallTasks(RecallConfig(tokens=400, kinds=(kind,)))
    for index in range(20):
        sample = tasks.sample(kind, "validation", index)
        kept = " ".join(sample.prompt[start:end] for start, end in sample.relevant)
        assert list(sample.relevant) == sorted(sample.relevant)
        assert all(word in kept for word in sample.answers[0].split())
        assert kept.rstrip().endswith(sample.prompt.rsplit(" ", 1)[1])


def test_the_topic_is_what_most_topic_words_are_about():
    tasks = RecallTasks(RecallConfig(tokens=600, kinds=("topic",)))
    for index in range(20):
        sample = tasks.sample("topic", "train", index)
        found = [sample.prompt[start:end].strip() for start, end in sample.relevant]
        counts = {name: sum(word in found for word in found if word in rows) for name, rows in words.TOPICS.items()}
        assert max(counts, key=counts.get) == sample.answers[0]
        assert sorted(counts.values())[-2] < counts[sample.answers[0]]


def test_latest_asks_for_the_last_city():
    tasks = RecallTasks(RecallConfig(tokens=300, kinds=("latest",)))
    sample = tasks.sample("latest", "train", 0)
    name = sample.prompt.rsplit(" ", 1)[1].rstrip("?")
    assert sample.prompt.count(f" {name}:") == 3
    assert sample.prompt.rsplit(f" {name}:", 1)[1].startswith(sample.answers[0] + ".")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kinds": ("riddle",)}, "riddle"), ({"facts": 13}, "facts is 13"), ({"moves": 1}, "moves is 1")],
)
def test_a_wrong_configuration_is_one_clear_error(change, message):
    with pytest.raises(ValueError, match=message):
        RecallTasks(RecallConfig(**change))


def test_too_many_facts_for_the_length_is_an_error():
    with pytest.raises(ValueError, match="raise tokens"):
        RecallTasks(RecallConfig(tokens=40, kinds=("topic",))).sample("topic", "train", 0)


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="split"):
        RecallTasks(RecallConfig()).sample("residence", "test", 0)


def test_every_piece_is_one_token(tokenizer):
    assert all(len(tokenizer(piece)["input_ids"]) == 1 for piece in words.vocabulary())


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(text, tokenizer):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("text", ["<0x41>", "▁a ▁", "  two  spaces ", "Straße 東京 🙂\n\n\t.", " Anna:Paris", "<unk>"])
def test_awkward_text_survives_the_tokenizer(text, tokenizer):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_command_builds_the_shipped_tokenizer(tokenizer):
    assert pretrain.build_tokenizer().get_vocab() == tokenizer.get_vocab()


HARD = pytest.mark.xfail(strict=True, reason="two hops are learnt in part: 0.79 at 120 tokens (models/recall-small)")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=HARD) if kind == "journey" else kind for kind in KINDS])
def test_the_shipped_model_solves_short_prompts(kind, tokenizer, model):
    tasks = RecallTasks(RecallConfig(tokens=120, facts=4, topic_words=8, kinds=(kind,)))
    right = 0
    for index in range(40):
        sample = tasks.sample(kind, "validation", index)
        ids = tokenizer(sample.prompt, return_tensors="pt")["input_ids"]
        wanted = tokenizer(sample.completion)["input_ids"]
        written = model.generate(ids, max_new_tokens=len(wanted), do_sample=False)[0, ids.shape[1] :]
        right += written.tolist() == wanted
    assert right >= 34  # 0.85


def test_the_shipped_folder_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 4 * 2**20


def test_training_runs_and_writes_a_folder_that_loads(tmp_path, capsys):
    assert pretrain.main(["--out", str(tmp_path / "model"), "--steps", "2"]) == 0
    assert "step 2/2" in capsys.readouterr().out
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "model"))
