"""MLVU's multiple-choice tasks (Zhou et al., 2024), development set, in the layout of its data set. Knows no model.

Files, as `MLVU/MVLU` on the Hub has them: `json/1_plotQA.json` to `json/7_topic_reasoning.json`, lists of records with
`video`, `duration`, `question`, `candidates`, `answer` (one of the candidates) and `question_type`; the videos in
`video/1_plotQA/` and so on, or `video/plotQA/`. Prompt, scoring (the letter in front of the first bracket) and the
choice of frames (the middles of equal parts) follow the authors' evaluation (github.com/JUNJIE99/MLVU,
`choice_bench.py`). The two tasks with free-text answers are left out, since a language model grades them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from workers.tasks import OWN_METRIC, choices, fields, frames
from workers.tasks.benchmark import Benchmark
from workers.tasks.records import Records, locate
from workers.tasks.video import MARK, VideoSample
from workers.tasks.video_benchmark import VideoBenchmarkConfig

FIELDS = {
    "video": fields.text(blank=False),
    "question": fields.text(blank=False),
    "candidates": fields.Field((list,), lambda value: None),
    "answer": fields.text(),
    "question_type": fields.text(),
}
FILES = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""The tasks, and the name of each one's file and folder."""
INSTRUCTION = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.\n"
)


@dataclass(frozen=True)
class MlvuConfig(VideoBenchmarkConfig):
    """Which videos, and how many frames; a video always gives `frames` of them."""


class MlvuTasks(Benchmark):
    """MLVU's multiple-choice tasks (a `TaskSet` that grades its samples)."""

    known = tuple(FILES)
    config: MlvuConfig

    def read(self, task: str) -> Records:
        """The records of a task. Raises ValueError, one line, also if an answer is none of its candidates."""
        file = locate(self.config.path, None, (f"json/{FILES[task]}.json", f"{FILES[task]}.json"), f"MLVU's {task}")
        return Records(file, FIELDS, "video", check=partial(self.check, task))

    def check(self, task: str, record: dict[str, Any]) -> None:
        """Raises ValueError, one line, where the answer is none of the candidates, or the video is not there."""
        if record["answer"] not in choices.checked(record["candidates"], "candidates"):
            raise ValueError(f"the answer {fields.shown(record['answer'])} is none of its candidates")
        frames.find(self._video(task, record["video"]))

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> VideoSample:
        """The sample of a record, its frames read from the video. Raises ValueError, one line, for a bad video."""
        candidates = list(map(str, record["candidates"]))
        video = frames.look(self._video(task, record["video"]))
        question = f"Question: {record['question']}\nOptions:\n{choices.lettered(candidates, '({letter}) {text}')}"
        return VideoSample(
            task=task,
            split=split,
            index=index,
            prompt=f"{INSTRUCTION}{MARK}\n{question}\nOnly give the best option.\nBest option:(",
            answers=(choices.LETTERS[candidates.index(record["answer"])],),
            relevant=(),
            metric=OWN_METRIC,
            max_new_tokens=self.config.max_new_tokens.get(task, 16),
            stop=self.config.stop.get(task, ()),
            delimiter="",
            frames=frames.at(video, sampled(video, self.config.frames)),
            choices=tuple(choices.LETTERS[: len(candidates)]),
        )

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """1 if the right letter is what stands in front of the first closing bracket, else 0."""
        record = self.record(task, split, index)
        right = choices.LETTERS[record["candidates"].index(record["answer"])]
        return float(prediction.strip().split(")")[0] == right)

    def _video(self, task: str, name: str) -> Path:
        folder = Path(self.config.path) / "video"
        usual = folder / FILES[task] / name
        return usual if usual.is_file() or not (folder / task / name).is_file() else folder / task / name


def sampled(video: frames.VideoFile, count: int) -> list[float]:
    """Times of the frames in seconds: `get_index` of the authors' evaluation."""
    last = round(video.seconds * video.rate) - 1
    step = last / count
    return [int(step / 2 + np.round(step * i)) / video.rate for i in range(count)]
