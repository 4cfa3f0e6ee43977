"""Records that cannot be used: each is one line that names file and line, as soon as its file is read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.workers import videos
from workers.tasks import fields
from workers.tasks.loading import load_tasks

PLAIN = {
    "context": "Anna:Paris. The farmer waited.",
    "question": "Where is Anna?",
    "answers": ["Paris"],
    "metric": "qa_f1_score",
    "max_new_tokens": 3,
}
LONGBENCH = {"input": "Where?", "context": "Anna:Paris.", "answers": ["Paris"], "all_classes": None}
INFINITE = {"id": 0, "context": "Anna:Paris.", "input": "Where?", "answer": ["Paris"], "options": []}
RULER = {"input": "Anna:Paris. Where?", "outputs": ["Paris"]}
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jsonl": ("facts.jsonl", "facts", PLAIN),
    "longbench": ("data/qasper.jsonl", "qasper", LONGBENCH),
    "infinitebench": ("passkey.jsonl", "passkey", INFINITE),
    "choubun": ("wiki_qa.jsonl", "wiki_qa", LONGBENCH),
    "ruler": ("vt/validation.jsonl", "vt", RULER),
}
"""A file in its folder, its task, and a good record, by source."""
ANSWERS = {"infinitebench": "answer", "ruler": "outputs"}
PROMPTS = {"ruler": "input"}


def line(record: dict[str, Any], **changes: Any) -> str:
    return json.dumps({key: value for key, value in (record | changes).items() if value is not ...})


def refused(folder: Path, source: str, bad: str, **options: Any) -> str:
    """What is said of the third line of a file; nothing but its size was asked for."""
    name, task, good = FILES[source]
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([line(good), "", bad, line(good)]) + "\n", encoding="utf-8")
    tasks = load_tasks({"source": source, "path": str(folder), "tasks": [task], "disjoint": False, **options})
    with pytest.raises(ValueError) as error:
        tasks.size(task, "heldout")
    message = str(error.value)
    assert message.startswith(f"{file}, line 3: ") and "\n" not in message and len(message) < 400
    message.encode()  # a message can be printed
    return message.removeprefix(f"{file}, line 3: ")


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "a list of one or more texts, found []"),
        ([["Paris", "Paris, France"]], "a list of one or more texts, found [['Paris'"),
        ([None], "a list of one or more texts, found [None]"),
        ([{"text": "Paris"}], "a list of one or more texts, found [{"),
        ([True], "a list of one or more texts, found [True]"),
        ([float("nan")], "a list of one or more texts, found [nan]"),
        (["Paris", []], "a list of one or more texts"),
        ([" ", "Paris"], "a list whose first text is not blank"),
        (None, "found NoneType"),
        (True, "found bool"),
        ({"text": ["Paris"]}, "found dict"),
        (..., "expected the key"),
    ],
)
def test_answers_that_are_none(tmp_path, source, value, said):
    key = ANSWERS.get(source, "answers")
    message = refused(tmp_path, source, line(FILES[source][2], **{key: value}))
    assert said in message and repr(key) in message


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Anna:Paris. \ud83d", "half a character (a lone surrogate, '\\ud83d')"),
        ("", "a text that is not blank, found ''"),
        (" \n", "a text that is not blank"),
        (None, "to be str, found NoneType"),
        (7, "to be str, found int"),
        (["Anna:Paris."], "to be str, found list"),
    ],
)
def test_texts_that_are_none(tmp_path, source, value, said):
    key = PROMPTS.get(source, "context")
    message = refused(tmp_path, source, line(FILES[source][2], **{key: value}))
    assert said in message and repr(key) in message


@pytest.mark.parametrize("source", FILES)
def test_half_a_character_anywhere(tmp_path, source):
    good = FILES[source][2]
    key = ANSWERS.get(source, "answers")
    assert "half a character" in refused(tmp_path, source, line(good, **{key: ["Paris \udc00"]}))
    assert "half a character" in refused(tmp_path, source, line(good, note={"deep": ["\ud83d"]}))
    assert "half a character" in refused(tmp_path, source, line(good, **{"\ud83d": 1}))


@pytest.mark.parametrize("source", FILES)
def test_lines_that_are_no_records(tmp_path, source):
    good = line(FILES[source][2])
    assert "the key 'context' stands in it twice" in refused(tmp_path, source, '{"context": "a", "context": "b"}')
    assert "too deeply nested" in refused(tmp_path, source, "[" * 100_000)
    assert "expected one JSON object, found int" in refused(tmp_path, source, "7")
    assert "expected one JSON object (" in refused(tmp_path, source, '{"context": ' + "7" * 5000 + "}")
    assert "expected one JSON object (" in refused(tmp_path, source, good[:-1])
    assert "found none" in refused(tmp_path, source, "{}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": -5}, "'max_new_tokens' to be 1 to 1048576, found -5"),
        ({"max_new_tokens": 0}, "found 0"),
        ({"max_new_tokens": True}, "'max_new_tokens' to be int, found bool"),
        ({"max_new_tokens": 2.0}, "'max_new_tokens' to be int, found float"),
        ({"max_new_tokens": float("nan")}, "'max_new_tokens' to be int, found float"),
        ({"max_new_tokens": 10**30}, "'max_new_tokens' to be 1 to 1048576"),
        ({"metric": "qa_f2"}, "expected 'metric' to be one of exact_match"),
        ({"metric": 3}, "'metric' to be str, found int"),
        ({"metric": "classification_score"}, "classification_score needs all_classes"),
        ({"metric": "retrieval_score"}, 'must hold "Paragraph " and a number'),
        ({"stop": "."}, "'stop' to be list, found str"),
        ({"stop": [""]}, "'stop' to be a list of texts that are not empty, found ['']"),
        ({"stop": [None]}, "'stop' to be a list of texts"),
        ({"all_classes": [1]}, "'all_classes' to be a list of texts"),
        ({"language": False}, "'language' to be str, found bool"),
        ({"question": None}, "'question' to be str, found NoneType"),
    ],
)
def test_what_a_plain_record_may_not_say(tmp_path, changes, said):
    assert said in refused(tmp_path, "jsonl", line(PLAIN, **changes))


def test_what_a_plain_record_may_say(tmp_path):
    """Numbers as answers, null for what may be left out, a blank question, keys of one's own with any value."""
    more = {"answers": [1937, "1937 "], "stop": None, "all_classes": None, "question": "", "mine": [float("nan"), None]}
    (tmp_path / "facts.jsonl").write_text(line(PLAIN, **more) + "\n")
    tasks = load_tasks({"source": "jsonl", "path": str(tmp_path), "disjoint": False})
    sample = tasks.sample("facts", "heldout", 0)
    assert (sample.answers, sample.stop, sample.classes) == (("1937", "1937 "), (), ())


def test_a_template_that_a_later_record_does_not_fill(tmp_path):
    good = line(PLAIN, title="Cities")
    name, task, _ = FILES["jsonl"]
    (tmp_path / name).write_text("\n".join([good, line(PLAIN)]) + "\n")
    tasks = load_tasks({"source": "jsonl", "path": str(tmp_path), "templates": {task: "{title} {context}"}})
    with pytest.raises(ValueError, match=r"line 2: tasks\.templates\.facts: the records have no 'title'"):
        tasks.size(task, "train")
    other = load_tasks({"source": "jsonl", "path": str(tmp_path), "template": " "})
    with pytest.raises(ValueError, match=r"line 1: tasks\.template: gives a prompt that is blank"):
        other.size(task, "train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer": ["Oslo"]}, "the answer to be one of its options, found 'Oslo'"),
        ({"options": []}, "expected 2 to 10 candidates, found []"),
        ({"options": [["Paris"], "Rome"]}, "'options' to be a list of texts"),
    ],
)
def test_choices_that_hold_no_answer(tmp_path, changes, said):
    good, file = INFINITE | {"options": ["Paris", "Rome"]}, tmp_path / "code_debug.jsonl"
    file.write_text(line(good) + "\n" + line(good, **changes) + "\n")
    tasks = load_tasks({"source": "infinitebench", "path": str(tmp_path), "tasks": ["code_debug"]})
    with pytest.raises(ValueError) as error:
        tasks.size("code_debug", "train")
    assert f"{file}, line 2: " in str(error.value) and said in str(error.value)


@pytest.mark.parametrize(
    ("source", "task", "changes", "said"),
    [
        ("longvideobench", "lvb_15", {"duration": float("nan")}, "'duration' to be a finite number of at least 0"),
        ("longvideobench", "lvb_15", {"duration": True}, "'duration' to be int or float, found bool"),
        ("longvideobench", "lvb_15", {"correct_choice": False}, "'correct_choice' to be int, found bool"),
        ("longvideobench", "lvb_15", {"candidates": [None, "b"]}, "the candidates to be a list of one or more texts"),
        ("longvideobench", "lvb_15", {"question": "\ud83d?"}, "half a character"),
        ("longvideobench", "lvb_15", {"video_path": "gone.mp4"}, "there is no such video"),
        ("longvideobench", "lvb_15", {"subtitle_path": "gone.json"}, "is missing"),
        ("mlvu", "plotQA", {"candidates": [["red"], "blue"]}, "the candidates to be a list of one or more texts"),
        ("mlvu", "plotQA", {"question": " "}, "'question' to be a text that is not blank"),
        ("mlvu", "plotQA", {"video": "gone.mp4"}, "there is no such video"),
    ],
)
def test_records_of_videos(tmp_path, source, task, changes, said):
    pytest.importorskip("av")
    if source == "mlvu":
        videos.mlvu(tmp_path)
        file = tmp_path / "json/1_plotQA.json"
    else:
        videos.longvideobench(tmp_path)
        file = tmp_path / "lvb_val.json"
    records = json.loads(file.read_text())
    records[1] |= changes
    file.write_text(json.dumps(records))
    with pytest.raises(ValueError) as error:
        load_tasks({"source": source, "path": str(tmp_path), "tasks": [task]}).size(task, "train")
    message = str(error.value)
    assert str(file) in message and "record 2" in message and said in message and "\n" not in message


def test_files_that_cannot_be_read(tmp_path):
    options = {"source": "longbench", "path": str(tmp_path), "tasks": ["qasper"]}
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/qasper.jsonl", (line(LONGBENCH) + "\n") * 50)
    damaged = bytearray((tmp_path / "data.zip").read_bytes())
    damaged[60:70] = bytes(10)
    (tmp_path / "data.zip").write_bytes(bytes(damaged))
    with pytest.raises(ValueError, match=r"data\.zip: expected a zip file"):
        load_tasks(options).size("qasper", "train")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": {"facts": True}}, "expected int, found True"),
        ({"max_new_tokens": {"facts": -5}}, "must be at least 1, not -5"),
        ({"stop": {"facts": [""]}}, "stop of facts holds an empty text"),
        ({"stop": {"facts": [None]}}, "expected str, found None"),
        ({"templates": {"facts": ["{context}"]}}, "expected str, found"),
        ({"fractions": [float("nan"), 0.5, 0.5]}, "three shares that sum to 1"),
    ],
)
def test_options_of_another_type(tmp_path, options, said):
    (tmp_path / "facts.jsonl").write_text(line(PLAIN) + "\n")
    with pytest.raises(ValueError) as error:
        load_tasks({"source": "jsonl", "path": str(tmp_path), "tasks": ["facts"], **options})
    assert said in str(error.value)


def test_long_values_are_shown_short():
    with pytest.raises(ValueError) as error:
        fields.check({"answers": [["x" * 10_000]]}, {"answers": fields.answers()})
    assert len(str(error.value)) < 200
