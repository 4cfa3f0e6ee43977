"""LongVideoBench (Wu et al., 2024) in the layout of its data set. Knows no model.

Files, as `longvideobench/LongVideoBench` on the Hub has them once its archives are unpacked: `lvb_val.json`, a list of
records with `id`, `video_path`, `subtitle_path`, `question`, `candidates` (or `candidate0` to `candidate4`, "N/A" where
there are fewer), `correct_choice`, `position`, `topic_category`, `question_category`, `level`, `duration_group`,
`duration` and `starting_timestamp_for_subtitles`; `videos/`; `subtitles/`. The prompt (frames with the subtitles that
cover them in between, question, lettered candidates) and the choice of frames follow the authors' loader
(github.com/longvideobench/LongVideoBench, `longvideobench_dataset.py`); the scoring follows lmms-eval
(`lmms_eval/tasks/longvideobench/utils.py`), except that an answer without a letter scores 1 / candidates here, while
there a letter is drawn at random. `lvb_test_wo_gt.json` has no answers and cannot be scored.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from workers.tasks import OWN_METRIC, choices, fields, frames
from workers.tasks.benchmark import Benchmark
from workers.tasks.records import Records
from workers.tasks.video import MARK, VideoSample
from workers.tasks.video_benchmark import VideoBenchmarkConfig

FIELDS = {
    "id": fields.text(blank=False),
    "video_path": fields.text(blank=False),
    "subtitle_path": fields.text(blank=False),
    "question": fields.text(blank=False),
    "correct_choice": fields.Field((int,), lambda value: None),
    "duration_group": fields.Field((int,), lambda value: None),
    "duration": fields.number(0),
    "starting_timestamp_for_subtitles": fields.number(),
}
GROUPS = {"lvb_15": 15, "lvb_60": 60, "lvb_600": 600, "lvb_3600": 3600}
"""The tasks, and the `duration_group` of each: the length of its longest video, in seconds."""
INSTRUCTION = "Answer with the option's letter from the given choices directly."
PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


@dataclass(frozen=True)
class LongVideoBenchConfig(VideoBenchmarkConfig):
    """Which files, and how many frames: one a second of a video that has fewer seconds than `frames`."""

    annotations: str = "lvb_val.json"
    """File of the records, in the folder."""
    subtitles: bool = True
    """Whether subtitles are put between the frames (`longvideobench_val_i`) or left out (`..._v`)."""


class LongVideoBenchTasks(Benchmark):
    """LongVideoBench, one task for each length of videos (a `TaskSet` that grades its samples)."""

    known = tuple(GROUPS)
    config: LongVideoBenchConfig

    def read(self, task: str) -> Records:
        """The records of a duration group. Raises ValueError, one line, also for a choice without a candidate."""
        file = _file(Path(self.config.path), self.config.annotations, "LongVideoBench's records")
        wanted = {"duration_group": GROUPS[task]}
        return Records(file, FIELDS, "video_path", only=wanted, check=partial(self.check, task), name="id")

    def check(self, task: str, record: dict[str, Any]) -> None:
        """Raises ValueError, one line, where the right candidate, the video or its subtitles are not there."""
        among = len(_candidates(record, "candidates"))
        if not 0 <= record["correct_choice"] < among:
            raise ValueError(f"correct_choice is {record['correct_choice']}, with {among} candidates")
        folder = Path(self.config.path)
        frames.find(folder / "videos" / record["video_path"])
        if self.config.subtitles:
            read_subtitles(folder / "subtitles" / record["subtitle_path"], record["duration"])

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> VideoSample:
        """The sample of a record, its frames read from the video. Raises ValueError, one line, for a bad video."""
        folder, where = Path(self.config.path), f"{self.config.annotations}, {record['id']}"
        candidates = _candidates(record, where)
        video = frames.look(folder / "videos" / record["video_path"])
        times = sampled(record["duration"], video.rate, self.config.frames)
        shown: list[str] = [MARK]
        if self.config.subtitles:
            subtitles = read_subtitles(folder / "subtitles" / record["subtitle_path"], record["duration"])
            shown = interleaved(times, subtitles, record["starting_timestamp_for_subtitles"])
        question = [f"Question: {record['question']}", choices.lettered(candidates, "{letter}. {text}"), INSTRUCTION]
        return VideoSample(
            task=task,
            split=split,
            index=index,
            prompt="\n".join([*shown, *question]) + "\n",
            answers=(choices.LETTERS[record["correct_choice"]],),
            relevant=(),
            metric=OWN_METRIC,
            max_new_tokens=self.config.max_new_tokens.get(task, 32),
            stop=self.config.stop.get(task, ()),
            delimiter="",
            frames=frames.at(video, times),
            choices=tuple(choices.LETTERS[: len(candidates)]),
        )

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """1 for the right letter, 0 for another one; without a letter what a random choice would score on average."""
        record = self.record(task, split, index)
        letter = chosen(prediction)
        if letter is None:
            return 1 / len(_candidates(record, record["id"]))
        return float(letter == choices.LETTERS[record["correct_choice"]])


def chosen(response: str) -> str | None:
    """The first letter of a choice in an answer, as lmms-eval finds it; None if there is none."""
    text = response.strip()
    for prefix in PREFIXES:
        text = text.replace(prefix, "")
    found = re.search("[ABCDE]", text)
    return None if found is None else found[0]


def sampled(duration: float, rate: float, most: int) -> list[float]:
    """Times of the frames in seconds: `load_video` of the authors' loader."""
    count = max(1, min(most, int(duration)))
    step = int(int(duration * rate) / count)
    return [step * i / rate for i in range(count)]


def interleaved(times: list[float], subtitles: list[tuple[float, float, str]], start: float) -> list[str]:
    """One mark for each frame, and the subtitles that cover a frame, in order of time.

    times: of the frames, seconds; subtitles: (from, to, text), seconds; start: what subtitles count from. The authors'
    `insert_subtitles_into_frames`.
    """
    shown: list[str] = []
    passed = 0
    for first, last, text in subtitles:
        first, last = first - start, last - start
        middle = (first + last) / 2
        while passed < len(times) and times[passed] <= middle:
            shown.append(MARK)
            passed += 1
        if last - first < 1:
            first, last = middle - 0.5, middle + 0.5
        if any(first < at < last for at in times):
            shown.append(text.replace(MARK, ""))
    return shown + [MARK] * (len(times) - passed)


def read_subtitles(file: Path, duration: float) -> list[tuple[float, float, str]]:
    """(from, to, text) of each subtitle, in seconds, from either form that the data set has.

    duration: of the video, seconds: the end of a subtitle that has none. Raises ValueError, one line.
    """
    try:
        entries = json.loads(_file(file.parent, file.name, "a video's subtitles").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        raise ValueError(f"{file}: expected a JSON list of subtitles ({reason}); is the file whole?") from None
    if not isinstance(entries, list):
        raise ValueError(f"{file}: expected a JSON list of subtitles, found {type(entries).__name__}")
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            if "timestamp" in entry:
                first, last = entry["timestamp"]
                last = last if isinstance(last, float) else duration  # as the authors' loader has it
                found.append((float(first), float(last), str(entry["text"])))
            else:
                found.append((_seconds(entry["start"]), _seconds(entry["end"]), str(entry["line"])))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{file}, subtitle {number}: expected timestamp and text, or start, end (h:mm:ss) and line"
            ) from None
    return found


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _candidates(record: dict[str, Any], where: str) -> list[str]:
    """The record's candidates, whether they are a list or numbered keys."""
    if "candidates" in record:
        return choices.checked(record["candidates"], where)
    numbered = [record.get(f"candidate{i}", record.get(f"option{i}")) for i in range(5)]
    return choices.checked([text for text in numbered if text not in (None, "N/A")], where)


def _file(folder: Path, name: str, what: str) -> Path:
    if not (folder / name).is_file():
        raise ValueError(f"{folder / name}: is missing ({what}): bring it there, or name its folder (tasks.path)")
    return folder / name
