"""LongVideoBench and MLVU in their original layout: frames, prompts, scores, and what is wrong with a folder."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("av")
from tests.workers import videos
from workers.tasks import frames
from workers.tasks.loading import load_tasks
from workers.tasks.sources import mlvu
from workers.tasks.sources.longvideobench import chosen, interleaved, sampled


@pytest.fixture
def lvb(tmp_path):
    videos.longvideobench(tmp_path)
    return tmp_path


@pytest.fixture
def plots(tmp_path):
    videos.mlvu(tmp_path)
    return tmp_path


def lvb_tasks(folder, **options):
    return load_tasks(
        {"source": "longvideobench", "path": str(folder), "tasks": ["lvb_15"], "disjoint": False, **options}
    )


def mlvu_tasks(folder, **options):
    return load_tasks({"source": "mlvu", "path": str(folder), "tasks": ["plotQA"], "disjoint": False, **options})


def test_frames_are_those_of_their_times_however_far_apart(tmp_path):
    videos.write_video(tmp_path / "v.mp4", 9, keyframes=30)
    video = frames.look(tmp_path / "v.mp4")
    assert (video.seconds, video.rate) == (pytest.approx(9), videos.RATE)
    assert videos.shown(frames.at(video, [i / 10 for i in range(90)])) == pytest.approx(range(90), abs=1)
    assert videos.shown(frames.at(video, [0.0, 0.3, 6.2, 8.9, 20.0])) == pytest.approx([0, 3, 62, 89, 89], abs=1)


def test_longvideobench_prompts_are_those_of_the_authors_loader(lvb):
    tasks = lvb_tasks(lvb, frames=64)
    found = {s.prompt: s for s in (tasks.sample("lvb_15", "validation", i) for i in range(3))}
    want = (
        "<video>\nhello 0\n<video>\n<video>\n<video>\ngoodbye\n"
        "Question: What is shown?\nA. a dog\nB. a cat\nC. a bird\n"
        "Answer with the option's letter from the given choices directly.\n"
    )
    sample = found[want]  # frames of the seconds 0, 1, 2 and 3
    assert sample.answers == ("A",) and sample.choices == ("A", "B", "C")
    assert videos.shown(sample.frames) == pytest.approx([0, 10, 20, 30], abs=1)
    # an end that is no number means the end of the video, before the start is taken off: here it covers no frame
    assert sum("hello 1" in prompt and "goodbye" not in prompt for prompt in found) == 1


def test_longvideobench_without_subtitles_shows_one_video(lvb):
    sample = lvb_tasks(lvb, frames=2, subtitles=False).sample("lvb_15", "validation", 0)
    assert sample.prompt.startswith("<video>\nQuestion: ") and sample.prompt.count("<video>") == 1
    assert videos.shown(sample.frames) == pytest.approx([0, 20], abs=1)


def test_longvideobench_takes_numbered_candidates(lvb):
    records = json.loads((lvb / "lvb_val.json").read_text())
    for record in records:
        for i, text in enumerate([*record.pop("candidates"), "N/A", "N/A"]):
            record[f"candidate{i}"] = text
    (lvb / "lvb_val.json").write_text(json.dumps(records))
    assert "C. a bird\nAnswer" in lvb_tasks(lvb).sample("lvb_15", "validation", 0).prompt


def test_the_choice_of_frames_and_the_place_of_subtitles():
    assert sampled(100.0, 25.0, 4) == [0.0, 25.0, 50.0, 75.0]
    assert sampled(3.9, 10.0, 64) == [0.0, 1.3, 2.6]
    shown = interleaved([0.0, 1.0, 2.0], [(0.2, 0.4, "a"), (0.9, 2.5, "b"), (1.2, 1.3, "c")], 0.0)
    assert shown == ["<video>", "a", "<video>", "b", "c", "<video>"]
    assert mlvu.sampled(frames.VideoFile(None, 10.0, 10.0), 4) == [1.2, 3.7, 6.2, 8.6]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("B", "B"), (" (C)", "C"), ("The best answer is D. A book", "D"), ("The answer is A", "A"), ("none", None)],
)
def test_longvideobench_finds_the_letter(answer, letter):
    assert chosen(answer) == letter


def test_grades_are_the_benchmarks_own(lvb):
    tasks = lvb_tasks(lvb)
    right = tasks.sample("lvb_15", "validation", 0).answers[0]
    assert tasks.grade("lvb_15", "validation", 0, f"{right}. it is") == 1
    assert tasks.grade("lvb_15", "validation", 0, {"A": "B", "B": "C", "C": "A"}[right]) == 0
    assert tasks.grade("lvb_15", "validation", 0, "no idea") == pytest.approx(1 / 3)


def test_mlvu_prompts_and_grades_are_the_authors(plots):
    tasks = mlvu_tasks(plots, frames=4)
    sample = tasks.sample("plotQA", "validation", 0)
    assert sample.prompt == mlvu.INSTRUCTION + (
        "<video>\nQuestion: What colour is the car?\nOptions:\n(A) red\n(B) green\n(C) blue\n(D) white\n"
        "Only give the best option.\nBest option:("
    )
    assert videos.shown(sample.frames) == pytest.approx([4, 14, 24, 33], abs=1)
    assert tasks.grade("plotQA", "validation", 0, f"{sample.answers[0]}) red") == 1
    assert tasks.grade("plotQA", "validation", 0, "it is (A)") == 0


def test_mlvu_finds_videos_in_folders_without_numbers(plots):
    (plots / "video" / "1_plotQA").rename(plots / "video" / "plotQA")
    assert len(mlvu_tasks(plots, frames=4).sample("plotQA", "validation", 0).frames) == 4


def _change(file, **values):
    records = json.loads(file.read_text())
    for record in records:
        record |= values
        for key in [key for key, value in record.items() if value is None]:
            del record[key]
    file.write_text(json.dumps(records))


def _cut(file, share=0.5):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


DAMAGES = {
    "truncated records": (lambda f: _cut(f / "lvb_val.json"), "lvb_val.json.*is the file whole"),
    "records are an object": (lambda f: (f / "lvb_val.json").write_text("{}"), "lvb_val.json.*JSON list.*dict"),
    "no records": (lambda f: (f / "lvb_val.json").unlink(), "lvb_val.json.*missing"),
    "a field is missing": (lambda f: _change(f / "lvb_val.json", question=None), "lvb_val.json, record 1.*'question'"),
    "no answers": (lambda f: _change(f / "lvb_val.json", correct_choice=None), "record 1.*'correct_choice'"),
    "a wrong choice": (lambda f: _change(f / "lvb_val.json", correct_choice=7), "lvb_val.json, v0_0.*is 7.*3 cand"),
    "no candidates": (lambda f: _change(f / "lvb_val.json", candidates=[]), "lvb_val.json, v0_0.*candidates"),
    "another length": (lambda f: _change(f / "lvb_val.json", duration_group=60), "no record with duration_group 15"),
    "a damaged video": (lambda f: [_cut(v, 0.3) for v in (f / "videos").iterdir()], r"v\d.mp4.*is the file whole"),
    "an empty video": (lambda f: [v.write_bytes(b"") for v in (f / "videos").iterdir()], r"v\d.mp4.*file whole"),
    "no video": (lambda f: [v.unlink() for v in (f / "videos").iterdir()], r"v\d.mp4: there is no such video"),
    "no subtitles": (lambda f: [v.unlink() for v in (f / "subtitles").iterdir()], r"v\d_en.json.*missing"),
    "truncated subtitles": (lambda f: [_cut(v) for v in (f / "subtitles").iterdir()], r"v\d_en.json.*file whole"),
    "other subtitles": (
        lambda f: [v.write_text('[{"at": 3}]') for v in (f / "subtitles").iterdir()],
        r"v\d_en.json, subtitle 1.*expected",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_longvideobench_is_refused_with_file_and_cause(lvb, damage):
    change, message = DAMAGES[damage]
    change(lvb)
    with pytest.raises(ValueError, match=message) as error:
        lvb_tasks(lvb).sample("lvb_15", "validation", 0)
    assert "\n" not in str(error.value)


MLVU_DAMAGES = {
    "truncated records": (lambda f: _cut(f / "json/1_plotQA.json"), "1_plotQA.json.*is the file whole"),
    "no records": (lambda f: (f / "json/1_plotQA.json").unlink(), "plotQA.*holds no json/1_plotQA.json"),
    "a field is missing": (lambda f: _change(f / "json/1_plotQA.json", answer=None), "1_plotQA.json, record 1.*'ans"),
    "a wrong answer": (lambda f: _change(f / "json/1_plotQA.json", answer="pink"), "record 1.*'pink' is none"),
    "a damaged video": (lambda f: [_cut(v) for v in f.glob("video/*/*")], r"movie_\d.mp4.*is the file whole"),
    "no video": (lambda f: [v.unlink() for v in f.glob("video/*/*")], r"1_plotQA/movie_\d.mp4: there is no such"),
}


@pytest.mark.parametrize("damage", MLVU_DAMAGES)
def test_a_wrong_mlvu_is_refused_with_file_and_cause(plots, damage):
    change, message = MLVU_DAMAGES[damage]
    change(plots)
    with pytest.raises(ValueError, match=message) as error:
        mlvu_tasks(plots).sample("plotQA", "validation", 0)
    assert "\n" not in str(error.value)


def test_questions_on_one_video_stay_in_one_split(lvb):
    records = json.loads((lvb / "lvb_val.json").read_text())
    more = [
        {**record, "id": f"{record['id']}_{i}", "question": f"What is {i}?"} for record in records for i in range(4)
    ]
    (lvb / "lvb_val.json").write_text(json.dumps(more))
    tasks = lvb_tasks(lvb, disjoint=True, fractions=[0.4, 0.3, 0.3])
    for split in ("train", "validation", "heldout"):
        try:
            assert tasks.size("lvb_15", split) % 4 == 0
        except ValueError as error:
            assert "raise that share" in str(error)
