"""From a sample's text to tokens: the middle's loss, the opening token, chat templates, and where an answer ends."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from namm_core import NammConfig
from orchestrator import spec
from workers.config import EvaluatorConfig, ModelConfig, PromptConfig
from workers.evaluator import Evaluator
from workers.tasks import Sample, Turn
from workers.tasks.metrics import score
from workers.tasks.prompt import Prompt, cut, tokenise
from workers.unit import PolicySpec, SampleRef, Unit

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SAMPLE = Sample("t", "train", 0, "\nThe key is 42. What is the key?", ("42", "forty-two"), ((0, 4), (12, 14)))


def tokenizer(template: str | None = TEMPLATE, opens: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte; opens every text with <s>, if asked to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "</s>", "<user>", "<assistant>", *alphabet]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(names[:4])
    if opens:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>" if opens else None, eos_token="</s>")
    made.chat_template = template
    return made


def text(prompt: Prompt, of: PreTrainedTokenizerFast) -> str:
    return of.decode(prompt.ids)


def test_as_it_comes_the_tokenizer_decides():
    for opens in (True, False):
        of = tokenizer(opens=opens)
        prompt = tokenise(SAMPLE, of)
        assert prompt.ids.tolist() == of(SAMPLE.prompt)["input_ids"]
        assert text(prompt, of) == ("<s>" if opens else "") + SAMPLE.prompt
        assert of.decode(prompt.reference) == " 42"  # the first of the answers
        assert of.decode(prompt.ids[prompt.relevant]) == "\nThe42"
        assert prompt.answers == ("42", "forty-two") and prompt.max_new_tokens == 3


def test_the_opening_token_always_and_never():
    of = tokenizer()
    assert text(tokenise(SAMPLE, of, PromptConfig(bos="never")), of) == SAMPLE.prompt
    assert text(tokenise(SAMPLE, of, PromptConfig(bos="always")), of) == "<s>" + SAMPLE.prompt
    bare = tokenise(SAMPLE, of, PromptConfig(bos="always"))
    assert of.decode(bare.ids[bare.relevant]) == "\nThe42"
    without = tokenizer(opens=False)
    assert text(tokenise(SAMPLE, without, PromptConfig(bos="never")), without) == SAMPLE.prompt
    with pytest.raises(ValueError, match=r"prompt\.bos is always, but .* no token that opens a text"):
        tokenise(SAMPLE, without, PromptConfig(bos="always"))


def test_a_chat_template_goes_around_the_prompt():
    of = tokenizer()
    prompt = tokenise(SAMPLE, of, PromptConfig(chat_template=True))
    assert text(prompt, of) == "<s><user>The key is 42. What is the key?</s><assistant>"
    turn = [{"role": "user", "content": SAMPLE.prompt}]
    assert prompt.ids.tolist() == of.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert of.decode(prompt.ids[prompt.relevant]) == "The42"  # found again behind what the template cut and added
    assert of.decode(prompt.reference) == "42"
    off = tokenise(SAMPLE, of, PromptConfig(chat_template=True, bos="never"))
    assert text(off, of) == "<user>The key is 42. What is the key?</s><assistant>"
    few_shot = dataclasses.replace(SAMPLE, chat=False)
    assert text(tokenise(few_shot, of, PromptConfig(chat_template=True)), of) == "<s>" + SAMPLE.prompt
    with pytest.raises(ValueError, match=r"prompt\.chat_template is on, but .* no chat template"):
        tokenise(SAMPLE, tokenizer(template=None), PromptConfig(chat_template=True))


TURNS = (Turn("And the lock?", "It is", "7"), Turn("Both?", "They are", "42, 7"))


@pytest.mark.parametrize("chat", [False, True])
def test_further_questions_follow_the_answer_as_a_conversation_goes_on(chat):
    of = tokenizer()
    sample = dataclasses.replace(SAMPLE, prefix="It is", turns=TURNS)
    prompt = Prompt.unpack(tokenise(sample, of, PromptConfig(chat_template=chat)).pack())
    everything = of.decode([*prompt.ids, *prompt.reference])
    said = [SAMPLE.prompt, "It is 42", "And the lock?", "It is 7", "Both?", "They are 42, 7"]
    if chat:
        talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        spoken = of.apply_chat_template(talk, tokenize=False).replace("<assistant>", "<assistant> ")
        assert everything == spoken.removesuffix("</s>")
    else:
        assert everything == "<s>" + "\n".join((said[0], said[1], "", said[2], said[3], "", said[4], said[5]))
    assert [of.decode(prompt.reference[a:b]) for a, b in prompt.scored] == [" 42", " 7", " 42, 7"]
    assert prompt.max_new_tokens == 3  # those of the first answer
    assert tokenise(SAMPLE, of).scored == ()


@pytest.mark.parametrize("most", [2, 11, 12, 33, 34, 1000])
@pytest.mark.parametrize("chat", [False, True])
def test_the_middle_is_cut_out_of_tokens(most, chat):
    """First and last halves of the tokens themselves; letters of several bytes are cut apart, not made anew."""
    of = tokenizer()
    sample = dataclasses.replace(SAMPLE, prompt="日本語の長い文章。 key 42", relevant=((10, 16),))
    whole = tokenise(sample, of, PromptConfig(chat_template=chat))
    prompt = tokenise(sample, of, PromptConfig(chat_template=chat, max_tokens=most))
    if most >= len(whole.ids):
        assert prompt.ids.tolist() == whole.ids.tolist()
    else:
        half = most // 2
        assert prompt.ids.tolist() == [*whole.ids[:half].tolist(), *whole.ids[-half:].tolist()]
        assert len(prompt.ids) <= most
    wanted = whole.ids[whole.relevant].tolist()
    assert prompt.ids[prompt.relevant].tolist() == wanted[len(wanted) - len(prompt.relevant) :]


def test_an_answer_ends_at_its_first_stop_text():
    assert cut("one. two\nthree", ("\n", ". ")) == "one"
    assert cut("one", ("\n",)) == cut("one", ()) == "one"
    assert cut("\n\none\ntwo", ("\n",)) == "one"
    assert cut(".one", (".",)) == ""


def test_few_shot_tasks_recorded_scores(golden):
    """LongBench's own scores where it takes the first line of an answer."""
    recorded = json.loads((golden / "metrics.json").read_text(encoding="utf-8"))
    for name, metric in (("triviaqa/multiline", "qa_f1_score"), ("trec/multiline", "classification_score")):
        task = recorded["task_level"][name]
        pairs = zip(task["predictions"], task["references"], strict=True)
        ours = [score(metric, cut(p, ("\n",)), refs, recorded["all_classes"]) for p, refs in pairs]
        assert ours == pytest.approx(task["per_sample"], abs=1e-6)


def test_packing_keeps_all_of_a_prompt():
    sample = dataclasses.replace(SAMPLE, stop=("\n", "。"), classes=("a", "日本"), max_new_tokens=7)
    prompt = tokenise(sample, tokenizer())
    back = Prompt.unpack(prompt.pack())
    for name in ("answers", "metric", "max_new_tokens", "stop", "classes"):
        assert getattr(back, name) == getattr(prompt, name), name
    for name in ("ids", "reference", "relevant"):
        assert getattr(back, name).tolist() == getattr(prompt, name).tolist(), name


def test_every_choice_is_part_of_the_key(small_model, tmp_path):
    """Prompts and base scores that one choice, or one file, made are not another's."""
    from orchestrator.services.redis_server import private_redis

    file = tmp_path / "facts.jsonl"
    record = {"context": "Text: Anna:Paris.", "question": "Where is Anna?", "answers": ["Paris"]}
    record |= {"metric": "exact_match", "max_new_tokens": 2}
    tasks = {"source": "jsonl", "path": str(tmp_path), "disjoint": False}
    file.write_text(json.dumps(record) + "\n")
    with private_redis() as url:

        def misses(prompt: PromptConfig, **changes) -> int:
            model = ModelConfig(str(small_model))
            config = EvaluatorConfig(model, tasks | changes, NammConfig(), redis_url=url, prompt=prompt)
            evaluator = Evaluator(config)
            evaluator.evaluate(Unit((PolicySpec("full"),), (SampleRef("facts", "train", 0),)))
            return evaluator.arrays.misses

        assert misses(PromptConfig()) == 2  # the prompt and its base score
        assert misses(PromptConfig()) == 0
        assert misses(PromptConfig(max_tokens=4)) == 2
        assert misses(PromptConfig(bos="never")) == 2
        assert misses(PromptConfig(), max_new_tokens={"facts": 1}) == 2
        file.write_text(json.dumps(record | {"question": "Who is in Paris?"}) + "\n")
        assert misses(PromptConfig()) == 2


def test_choices_are_typed_and_in_the_job(tmp_path):
    job = tmp_path / "job.yaml"
    plain = "name: a\nmodel: {path: models/x}\ntasks: {source: recall}\ntrain: [topic]\n"
    job.write_text(plain + "prompt: {max_tokens: 32_000, bos: always, chat_template: true}\n")
    assert spec.read(job).prompt == PromptConfig(32_000, "always", True)
    assert spec.read(job).digest() != spec.read(job, ["prompt.max_tokens=16000"]).digest()
    for bad, message in (("max_tokens: 1", "at least 2"), ("bos: yes", "not known"), ("chat: true", "chat_template")):
        job.write_text(plain + f"prompt: {{{bad}}}\n")
        with pytest.raises(ValueError, match=message):
            spec.read(job)
