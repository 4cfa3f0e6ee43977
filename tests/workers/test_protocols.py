"""Both protocols on the evaluator: `streaming`, and `context`, which forgets once, before the question."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from namm_core import Namm, NammConfig, policies
from workers.config import EvaluatorConfig, ModelConfig, PromptConfig
from workers.evaluator import Evaluator
from workers.tasks.loading import load_tasks
from workers.tasks.prompt import Prompt, tokenise
from workers.unit import PolicySpec, SampleRef, Unit

TASKS = {"source": "recall", "tokens": 264, "facts": 6, "topic_words": 12, "kinds": ["residence", "journey"]}
REFS = (SampleRef("residence", "heldout", 0), SampleRef("journey", "heldout", 1), SampleRef("residence", "heldout", 2))
"""Questions of three and of seven tokens, so that contexts are of unequal length."""
BUDGETED = [name for name in policies.names() if policies.named(name).takes_budget]


@pytest.fixture(scope="module")
def evaluator(small_model):
    return Evaluator(EvaluatorConfig(ModelConfig(str(small_model), ntk_alpha=8), TASKS, NammConfig(update_interval=64)))


@pytest.fixture(scope="module")
def tokenizer(small_model):
    return AutoTokenizer.from_pretrained(small_model)


def asked(prompt: Prompt, tokenizer) -> str:
    """The text of a prompt's tokens behind its context."""
    return tokenizer.decode(prompt.ids[prompt.context :])


@pytest.mark.parametrize("ref", REFS)
def test_the_question_is_what_follows_the_context(evaluator, tokenizer, ref):
    sample = evaluator.target.tasks.sample(*ref)
    question = sample.prompt[sample.context :]
    assert question.startswith("\n") and question.endswith("?")
    prompt = evaluator.target.sample(ref)
    assert asked(prompt, tokenizer) == question
    assert Prompt.unpack(prompt.pack()).context == prompt.context == evaluator.target.context(prompt)
    short = tokenise(sample, tokenizer, PromptConfig(max_tokens=100))
    assert len(short.ids) == 100 and asked(short, tokenizer) == question
    tokenizer.chat_template = "The fox. {{ messages[0]['content'] }} The."
    try:
        chat = tokenise(sample, tokenizer, PromptConfig(chat_template=True))
    finally:
        tokenizer.chat_template = None
    assert asked(chat, tokenizer) == question + " The."


def test_files_say_where_the_context_ends(tmp_path):
    record = {"context": "Anna is in Paris.", "question": "Where is Anna?", "answers": ["Paris"]}
    record |= {"metric": "qa_f1_score", "max_new_tokens": 4}
    (tmp_path / "mine.jsonl").write_text(json.dumps(record))
    form = "Read: {context} Now answer: {question}"
    tasks = load_tasks({"source": "jsonl", "path": str(tmp_path), "disjoint": False, "template": form})
    sample = tasks.sample("mine", "heldout", 0)
    assert tasks.separates and sample.prompt[sample.context :] == " Now answer: Where is Anna?"


@pytest.mark.parametrize("name", BUDGETED)
def test_the_budget_is_held_after_the_prompt(evaluator, name):
    spec = PolicySpec(name, budget=0.5, protocol="context")
    (results,) = evaluator.evaluate(Unit((spec,), REFS[:1]))
    assert results[0].kept == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("spec", [PolicySpec("snapkv", budget=0.4), PolicySpec("keydiff", budget=0.4)])
def test_samples_of_unequal_contexts_are_as_alone(evaluator, spec):
    context = dataclasses.replace(spec, protocol="context")
    (together,) = evaluator.evaluate(Unit((context,), REFS))
    alone = [evaluator.evaluate(Unit((context,), (ref,)))[0][0] for ref in REFS]
    assert together == alone
    (streaming,) = evaluator.evaluate(Unit((spec,), REFS))
    assert [r.logprob for r in streaming] != [r.logprob for r in together]


def test_candidates_share_a_batch(evaluator, small_model):
    saved = Namm.from_pretrained(small_model.parent / "recall-namm")
    given = saved.statistics
    statistics = None if given is None else (given.mean.numpy(), given.var.numpy(), given.count)
    theta = saved.theta.numpy()
    specs = [PolicySpec("namm", t, statistics, protocol="context") for t in (theta, -theta)]
    together = evaluator.evaluate(Unit(tuple(specs), REFS[:2]))
    for spec, results in zip(specs, together, strict=True):
        (alone,) = evaluator.evaluate(Unit((spec,), REFS[:2]))
        assert [r.kept for r in results] == [r.kept for r in alone]
        assert np.allclose([r.logprob for r in results], [r.logprob for r in alone], atol=1e-4)
    assert all(0 < result.kept < 0.5 for result in together[1])  # the shipped one keeps nearly all of so short a text
    with pytest.raises(ValueError, match="differ in theta alone"):
        evaluator.evaluate(Unit((specs[0], dataclasses.replace(specs[0], protocol="streaming")), REFS[:1]))


def test_a_task_that_does_not_say_where_its_question_begins_is_refused(small_model, tmp_path):
    record = {"input": "Anna is in Paris. Where is Anna?", "outputs": ["Paris"]}
    (tmp_path / "vt.jsonl").write_text(json.dumps(record))
    tasks = {"source": "ruler", "path": str(tmp_path), "tasks": ["vt"], "disjoint": False}
    evaluator = Evaluator(EvaluatorConfig(ModelConfig(str(small_model)), tasks))
    assert not evaluator.target.tasks.separates
    with pytest.raises(ValueError, match="does not say where its question begins"):
        evaluator.evaluate(Unit((PolicySpec("l2", budget=0.5, protocol="context"),), (SampleRef("vt", "heldout", 0),)))
