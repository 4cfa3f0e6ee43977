"""`NammPress`: in kvpress's own pipeline it answers what a `MemoryCache` answers under the same protocol."""

from __future__ import annotations

import json

import pytest
import torch

from namm_core import MemoryCache
from namm_core.once import Once
from tests import kvpress_wheels
from tests.workers import press_answers
from tests.workers.press_answers import ANSWER, POLICIES


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, list]:
    """[answer, compression ratio] of each text, by press."""
    place = tmp_path_factory.mktemp("kvpress")
    done = kvpress_wheels.run(
        kvpress_wheels.fetched(place), "-m", press_answers.__name__, str(file := place / "answers.json")
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def small():
    return press_answers.load()


def with_memory(small, policy, context: str, question: str) -> tuple[str, float]:
    """The answer, and the share that was forgotten, of a memory that forgets once, at the end of the context."""
    model, tokenizer = small
    first, then = (torch.tensor([tokenizer(text).input_ids]) for text in (context, question))
    tokens: list[int] = []
    with MemoryCache(model, Once(policy, first.shape[1])) as cache, torch.inference_mode():
        model(first, past_key_values=cache)
        forgotten = 1 - sum(map(sum, cache.kept_fractions())) / len(cache.layers)
        for _ in range(ANSWER):
            then = model(then, past_key_values=cache).logits[:, -1:].argmax(-1)
            tokens.append(int(then))
            if tokens[-1] == model.generation_config.eos_token_id:
                break
    return tokenizer.decode(tokens, skip_special_tokens=True), forgotten


@pytest.mark.parametrize("name", POLICIES)
def test_the_press_answers_as_the_memory_does(said, small, name):
    for (answer, ratio), (context, question) in zip(said[name], press_answers.texts(), strict=True):
        expected, forgotten = with_memory(small, press_answers.policy(name), context, question)
        assert (answer, round(ratio, 6)) == (expected, round(forgotten, 6))


def test_a_press_that_keeps_everything_changes_nothing(said):
    assert said["full"] == said["none"]


def test_the_ratio_that_an_evaluation_sets_is_the_policys_size(said):
    assert said["set-by-ratio"] == said["keydiff"]


def test_streaming_forgets_while_the_context_is_read(said):
    once, often = ([ratio for _, ratio in said[name]] for name in ("namm", "namm-streaming"))
    assert once != often
    assert all(0 < ratio < 1 for ratio in (*once, *often))
