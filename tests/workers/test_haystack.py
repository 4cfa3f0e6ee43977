"""Tasks in real text: needles and look-ups (`haystack`), going on and reciting (`text`), and the documents of both."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from workers.config import EvaluatorConfig, ModelConfig, PromptConfig
from workers.evaluator import Evaluator
from workers.tasks import SPLITS, Sample, documents, needles
from workers.tasks.lengths import Lengths, estimate
from workers.tasks.loading import load_tasks
from workers.tasks.metrics import score
from workers.tasks.prompt import tokenise
from workers.tasks.sources.haystack import INTERVIEW, LOOKED_UP, MADE, HaystackConfig
from workers.unit import PolicySpec, SampleRef, Unit

SMALL = str(Path(__file__).parents[2] / "models" / "recall-small")
KINDS = [("haystack", kind) for kind in (*MADE, *LOOKED_UP, INTERVIEW)] + [("text", "continue"), ("text", "recite")]
EACH_KIND = pytest.mark.parametrize(("source", "kind"), KINDS)


def tasks(source: str, **options):
    kinds = {"kinds": [*MADE, *LOOKED_UP, INTERVIEW]} if source == "haystack" else {}
    return load_tasks({"source": source, "tokens": 1500, **kinds, **options})


def whole(sample: Sample) -> str:
    return f"{sample.prompt}\n{sample.prefix}" if sample.prefix else sample.prompt


@EACH_KIND
def test_a_sample_is_a_pure_function_of_config_and_arguments(source, kind):
    first, again = tasks(source), tasks(source)
    again.sample(kind, "heldout", 7)
    assert first.sample(kind, "train", 3) == again.sample(kind, "train", 3)
    prompts = {first.sample(kind, split, i).prompt for split in SPLITS for i in range(20)}
    assert len(prompts) == 60
    assert tasks(source, seed=1).sample(kind, "train", 3).prompt not in prompts


@EACH_KIND
@pytest.mark.parametrize("tokens", [2600, 6000])
def test_prompts_have_the_wanted_length_in_tokens_of_a_model(source, kind, tokens):
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    found = tasks(source, tokens=tokens, tokenizer=SMALL)
    for index in range(3):
        sample = found.sample(kind, "heldout", index)
        length = len(tokenizer(whole(sample))["input_ids"])
        spare = 160 if kind == "recite" else 40  # a long word is many tokens of this small tokenizer
        assert tokens - spare <= length <= tokens


@EACH_KIND
def test_without_a_tokenizer_lengths_are_estimated(source, kind):
    for split in SPLITS:
        length = estimate(whole(tasks(source).sample(kind, split, 0)))
        assert 1450 <= length <= 1500


def sentences(sample: Sample) -> set[str]:
    """Those of a sample's text that are long, real, and neither put in nor part of the question."""
    text = sample.prompt[: sample.relevant[-1][0]] if sample.relevant else sample.prompt
    for start, end in reversed(sample.facts):
        text = text[:start] + "\n\n" + text[end:]
    return {row for row in re.split(r"(?<=[.!?])\s+|\n\n", text) if len(row) > 60}


@EACH_KIND
def test_splits_share_no_sentence(source, kind):
    found = tasks(source)
    seen = {split: set[str]().union(*(sentences(found.sample(kind, split, i)) for i in range(25))) for split in SPLITS}
    assert all(len(rows) > 100 for rows in seen.values())
    opening = "Read the following text."
    for one, other in (("train", "validation"), ("train", "heldout"), ("validation", "heldout")):
        assert {row for row in seen[one] & seen[other] if not row.startswith(opening)} == set()


@EACH_KIND
def test_the_relevant_text_says_the_answer(source, kind):
    found = tasks(source)
    for split in SPLITS:
        for index in range(15):
            sample = found.sample(kind, split, index)
            if kind == "continue":  # what follows stands nowhere
                assert sample.relevant == ()
                continue
            assert list(sample.relevant) == sorted(sample.relevant)
            kept = " ".join(sample.prompt[start:end] for start, end in sample.relevant[:-1])
            said = sample.answers[0] if sample.metric == "same_words" else sample.answers[0].split(", ")
            assert all(part in kept for part in ([said] if isinstance(said, str) else said))
            first, last = sample.relevant[0], sample.relevant[-1]
            assert first[0] == 0 and sample.prompt[slice(*last)].strip().endswith(("?", ".", '"'))
            assert sum(end - start for start, end in sample.relevant) < 0.6 * len(sample.prompt)


@EACH_KIND
def test_the_reference_is_a_perfect_answer(source, kind):
    found = tasks(source)
    for index in range(5):
        sample = found.sample(kind, "train", index)
        assert score(sample.metric, sample.answers[0], list(sample.answers)) == 1
        assert score(sample.metric, "nothing of it", list(sample.answers)) == 0


@pytest.mark.parametrize("kind", MADE)
def test_what_is_asked_for_stands_once(kind):
    found = tasks("haystack")
    for index in range(15):
        sample = found.sample(kind, "train", index)
        for start, end in sample.facts:
            fact = sample.prompt[start:end]
            if kind not in ("common", "frequent"):
                assert sample.prompt.count(fact) == 1
        asked = [span for span in sample.facts if span in sample.relevant]
        expected = {"single": 1, "multikey": 1, "multivalue": 4, "multiquery": 4, "tracking": 4, "common": 12}
        assert len(asked) == expected.get(kind, len(asked))
        assert set(sample.relevant[1:-1]) == set(asked)


def test_counts_follow_the_configuration():
    found = tasks("haystack", needles=20, values=2, hops=5, words=2, queries=3)
    facts = {kind: len(found.sample(kind, "train", 0).facts) for kind in MADE}
    # frequent: 8 // rank of each of six words
    assert facts == {
        "single": 1,
        "multikey": 20,
        "multivalue": 2,
        "multiquery": 6,
        "tracking": 12,
        "common": 2 * 4 + 8,
        "frequent": 8 + 4 + 2 + 2 + 1 + 1,
    }
    assert len(found.sample("multivalue", "train", 0).answers[0].split(", ")) == 2


def test_chains_and_lists_keep_their_order():
    found = tasks("haystack")
    for index in range(10):
        sample = found.sample("tracking", "train", index)
        chain = sample.answers[0].split(", ")
        places = [sample.prompt.index(f"VAR {name} =") for name in chain]
        assert places == sorted(places)
        sample = found.sample("multivalue", "train", index)
        places = [sample.prompt.index(value) for value in sample.answers[0].split(", ")]
        assert places == sorted(places)


def wordings(found, kind: str, split: str) -> set[int]:
    """Which wordings a split's needles have, by what stands around key and value."""
    seen = set()
    for index in range(40):
        sample = found.sample(kind, split, index)
        fact = sample.prompt[slice(*sample.facts[0])]
        forms = [re.escape(w.fact).replace(r"\{key\}", ".+").replace(r"\{value\}", ".+") for w in needles.WORDINGS]
        seen |= {number for number, form in enumerate(forms) if re.fullmatch(form, fact)}
    return seen


@pytest.mark.parametrize("kind", ["single", "multikey", "multivalue", "multiquery"])
def test_wordings_are_apart_or_shared(kind):
    apart = {split: wordings(tasks("haystack"), kind, split) for split in SPLITS}
    assert apart == {"train": {0, 1, 2}, "validation": {3}, "heldout": {4, 5}}
    shared = tasks("haystack", wordings="shared")
    assert all(wordings(shared, kind, split) == set(range(6)) for split in SPLITS)


def test_a_heading_is_asked_for_once_in_a_text_with_headings():
    found = tasks("haystack")
    for index in range(10):
        sample = found.sample("heading", "train", index)
        name = re.search(r'heading "(.*)" begins', sample.prefix)[1]
        above = [row for row in sample.prompt.split("\n\n") if row.lower() == name.lower()]
        assert len(above) == 1
        follows = sample.prompt[sample.prompt.index(f"\n\n{name}\n\n") + len(name) + 4 :]
        assert follows.startswith(sample.prefix.split("begins: ")[1] + " " + sample.answers[0].split()[0])


def test_a_continuation_follows_its_window():
    found = tasks("text", continued=40)
    for index in range(5):
        sample = found.sample("continue", "train", index)
        assert len(sample.answers[0].split()) == 40 and sample.completion.strip() == sample.answers[0]
        last = sample.prompt.split()[-3:]
        everything = [
            " ".join(" ".join(" ".join(p) for p in passage.paragraphs) for passage in document.passages)
            for document in documents.read("python", (0.5, 0.2, 0.3)).splits["train"]
        ]
        near = " ".join([*last, *sample.answers[0].split()[:1]])
        assert "\n\n" in sample.delimiter or any(near in text for text in everything)
        assert not sample.chat and sample.max_new_tokens < 30
    assert not found.locates
    assert tasks("text", kinds=["recite"]).locates


# The prompt as tokens ------------------------------------------------------------------------------------------


def test_the_prefix_follows_the_prompt_and_an_oracle_keeps_all_that_asks():
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    sample = tasks("haystack").sample("single", "train", 0)
    prompt = tokenise(sample, tokenizer)
    assert tokenizer.decode(prompt.ids) == f"{sample.prompt}\n{sample.prefix}"
    assert tokenizer.decode(prompt.reference) == f" {sample.answers[0]}"
    kept = tokenizer.decode(prompt.ids[prompt.relevant])
    assert kept.endswith(sample.prompt[slice(*sample.relevant[-1])] + f"\n{sample.prefix}")
    assert sample.prompt[slice(*sample.relevant[1])] in kept

    tokenizer.chat_template = "{% for m in messages %}[system] [user] {{ m['content'] | trim }}{% endfor %}[model] "
    prompt = tokenise(sample, tokenizer, PromptConfig(chat_template=True))
    assert tokenizer.decode(prompt.ids) == f"[system] [user] {sample.prompt}[model] {sample.prefix}"
    assert tokenizer.decode(prompt.reference) == f" {sample.answers[0]}"
    kept = tokenizer.decode(prompt.ids[prompt.relevant])
    assert kept.startswith("[system] [user] Read the following text.")
    assert kept.endswith(f"?[model] {sample.prefix}")
    assert len(prompt.relevant) < 0.3 * prompt.tokens


@EACH_KIND
def test_a_model_is_asked_and_graded(source, kind):
    """The whole way through the evaluator; the small model knows nothing of English."""
    options = {"source": source, "tokens": 2600, "tokenizer": SMALL, "kinds": [kind], "words": 1, "values": 2}
    options |= {"queries": 2, "hops": 1, "needles": 2} if source == "haystack" else {}
    if source == "text":
        options = {name: value for name, value in options.items() if name not in ("words", "values")}
    evaluator = Evaluator(EvaluatorConfig(ModelConfig(SMALL, ntk_alpha=128), options))
    policies = ("full",) if kind == "continue" else ("full", "oracle")
    for policy in policies:
        ((result,),) = evaluator.evaluate(Unit((PolicySpec(policy),), (SampleRef(kind, "train", 0),)))
        assert 0 <= result.score <= 1 and result.logprob < 0 and np.isfinite(result.logprob)
        assert 2400 < result.tokens <= 2600


# The documents -------------------------------------------------------------------------------------------------

PLAIN = "The harbour of the old town was built by monks who came from the south many years ago. It still stands.\n"
MARKDOWN = """# The mill

Nobody in the valley remembers when the **mill** was built, or who [paid](https://example.org) for its great wheel.

```python
Nobody = "should read code as prose, whatever its words may look like to a program that counts letters."
```

## The road

- The road to the mill is closed in winter because the snow on the pass is deeper than a man is tall.
"""
RST = """
The weaver
==========

A weaver is a person who makes cloth by hand on a loom, and :term:`sells <market>` it on the market of the town.

::

   cloth = loom.weave(yarn) and nothing else that would be a sentence with eight or more words in it.

x = y + 1 and so on for ever and ever, which is no sentence
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text(PLAIN)
    (tmp_path / "deep" / "b.md").write_text(MARKDOWN)
    (tmp_path / "c.rst").write_text(RST + "\n" + PLAIN)
    (tmp_path / "d.py").write_text("# " + PLAIN)
    return tmp_path


def test_prose_of_a_folder(folder):
    library = documents.read(str(folder), (0.5, 0.2, 0.3))
    found = {document.name: document for split in SPLITS for document in library.splits[split]}
    assert set(found) == {"a.txt", "deep/b.md", "c.rst"}
    mill, road = found["deep/b.md"].passages
    assert (mill.heading, road.heading) == ("The mill", "The road")
    assert mill.paragraphs[0][0].startswith("Nobody in the valley remembers when the mill was built, or who paid for")
    assert len(mill.paragraphs) == 1
    assert road.paragraphs[0][0].startswith("The road to the mill is closed")
    (weaver,) = found["c.rst"].passages  # the harbour stands in a.txt
    assert weaver.heading == "The weaver"
    assert weaver.paragraphs == (
        ("A weaver is a person who makes cloth by hand on a loom, and sells it on the market of the town.",),
    )
    assert found["a.txt"].passages[0].paragraphs[0] == (PLAIN.split(". ")[0] + ".", "It still stands.")


def test_what_the_documents_say_is_in_the_fingerprint(folder):
    before = tasks("text", text=str(folder), tokens=64, continued=4, kinds=["continue"]).fingerprint("continue")
    (folder / "a.txt").write_text(PLAIN.replace("monks", "nuns"))
    documents.read.cache_clear()
    after = tasks("text", text=str(folder), tokens=64, continued=4, kinds=["continue"]).fingerprint("continue")
    assert before and after and before != after
    assert tasks("haystack", tokenizer=SMALL).fingerprint("single") != tasks("haystack").fingerprint("single")


def test_documents_are_shared_out_in_the_wanted_fractions():
    library = documents.read("python", (0.5, 0.2, 0.3))
    characters = np.array([sum(document.characters for document in library.splits[split]) for split in SPLITS])
    assert np.allclose(characters / characters.sum(), (0.5, 0.2, 0.3), atol=0.02)
    names = [document.name for split in SPLITS for document in library.splits[split]]
    assert len(names) == len(set(names))


def test_a_short_text_begins_again(folder):
    sample = tasks("text", text=str(folder), tokens=600, continued=10).sample("continue", "heldout", 0)
    assert estimate(sample.prompt) > 550


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["riddle"]}, "unknown haystack task 'riddle': choose among single"),
        ({"needles": 1}, "needles is 1: give 2 to 40"),
        ({"fractions": [0.5, 0.5]}, "fractions must be three numbers"),
        ({"fractions": [0.5, 0.7, -0.2]}, "fractions must be three numbers"),
        ({"text": "nowhere"}, "no folder nowhere"),
        ({"wordings": "other"}, "'other' is not known"),
        ({"token": 5}, "did you mean 'tokens'"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        tasks("haystack", **options)
    assert "\n" not in str(error.value)


def test_text_that_does_not_do_is_one_clear_error(folder):
    with pytest.raises(ValueError, match="kind definition: .* at least 4 are needed"):
        tasks("haystack", text=str(folder))
    tasks("haystack", text=str(folder), kinds=["single"])
    (folder / "c.rst").write_bytes(b"\xff\xfe")
    documents.read.cache_clear()
    with pytest.raises(ValueError, match="c.rst cannot be read as UTF-8"):
        tasks("haystack", text=str(folder), kinds=["single"])
    (folder / "c.rst").unlink()
    with pytest.raises(ValueError, match="has 2 documents with prose in them"):
        tasks("haystack", text=str(folder), kinds=["single"])


def test_too_few_tokens_are_one_clear_error():
    with pytest.raises(ValueError, match="too few for what is asked"):
        tasks("haystack", tokens=120).sample("multikey", "train", 0)
    with pytest.raises(ValueError, match="too few for a passage"):
        tasks("text", tokens=100, recited=200).sample("recite", "train", 0)


def test_a_tokenizer_that_is_not_there_is_one_clear_error():
    found = tasks("haystack", tokenizer="no/such/folder")  # nothing is loaded before it counts
    with pytest.raises(ValueError, match="tasks.tokenizer: model folder no/such/folder does not exist"):
        found.sample("single", "train", 0)


def test_an_unknown_split_is_an_error():
    for source, kind in KINDS:
        with pytest.raises(ValueError, match="split"):
            tasks(source).sample(kind, "test", 0)


def test_estimates_are_close_to_a_real_tokenizer():
    """Counted once with SmolLM2's tokenizer."""
    assert estimate("The special magic number for silent-harbor mentioned in the provided text is 7421938.") == 22
    assert Lengths(None).count("Internationalisation of configuration\n\nfiles") == 8


def test_an_interview_asks_for_every_fact_in_turn():
    found = tasks("haystack", kinds=[INTERVIEW], needles=3, values=2)
    orders = set()
    for index in range(12):
        sample = found.sample(INTERVIEW, "train", index)
        rows = [(sample.prompt, sample.prefix, sample.answers[0])]
        rows += [(turn.question, turn.prefix, turn.answer) for turn in sample.turns]
        assert len(rows) == 4
        orders.add(tuple("," in answer for _, _, answer in rows))
        body = sample.prompt[: sample.relevant[-1][0]]
        for question, prefix, answer in rows:
            assert question.rstrip().endswith((".", "?")) and prefix
            places = [body.index(value) for value in answer.split(", ")] if "," in answer else [body.index(answer)]
            assert places == sorted(places)  # several values in the order of the text
        assert len(sample.facts) == 1 + 3 + 2 + 1 and len(sample.relevant) == 2 + 1 + 1 + 2 + 1
    assert len(orders) > 1


def test_each_sample_has_a_length_of_its_own():
    found = tasks("haystack", shortest=500)
    lengths = [estimate(whole(found.sample("single", "train", i))) for i in range(30)]
    assert min(lengths) < 700 and max(lengths) > 1300 and 460 <= min(lengths) and max(lengths) <= 1500
    with pytest.raises(ValueError, match="shortest is 1600: give 64 to 1500"):
        tasks("haystack", shortest=1600)


def test_the_default_kinds_are_all_that_ask_one_question():
    assert set(HaystackConfig().kinds) == {*MADE, *LOOKED_UP}
