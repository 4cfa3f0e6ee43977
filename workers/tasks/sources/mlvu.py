"""MLVU's multiple-choice tasks (Zhou et al., 2024), development set, in the layout of its data set. Knows no model.

Files, as `MLVU/MVLU` on the Hub has them: `json/1_plotQA.json` to `json/7_topic_reasoning.json`, lists of records with
`video`, `duration`, `question`, `candidates`, `answer` (one of the candidates) and `question_type`; the videos in
`video/1_plotQA/` and so on, or `video/plotQA/`. Prompt, scoring (the letter in front of the first bracket) and the
choice of frames (the middles of equal parts) follow the authors' evaluation (github.com/JUNJIE99/MLVU,
`choice_bench.py`). The two tasks of free text are left out: a language model grades them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workers.tasks import OWN_METRIC, choices, frames
from workers.tasks.benchmark import Benchmark
from workers.tasks.records import Records, locate
from workers.tasks.video import MARK, VideoSample
from workers.tasks.video_benchmark import VideoBenchmarkConfig

FIELDS = {"video": (str,), "question": (str,), "candidates": (list,), "answer": (str,), "question_type": (str,)}
FILES = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""Tasks, and the names of their file and folder."""
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
        file = locate(self.config.path, None, (f"json/{FILES[task]}.json", f"{FILES[task]}.json"), f"MLVU's {task}")
        records = Records(file, FIELDS, "video")
        for number in range(len(records)):
            where, record = f"{file}, record {number + 1}", records[number]
            if record["answer"] not in choices.checked(record["candidates"], where):
                raise ValueError(f"{where}: the answer {record['answer']!r} is none of its candidates")
        return records

    def make(self, task: str, split: str, index: int, record: dict[str, Any]) -> VideoSample:
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
        """1 where what stands in front of the first closing bracket is the right letter."""
        record = self.record(task, split, index)
        right = choices.LETTERS[record["candidates"].index(record["answer"])]
        return float(prediction.strip().split(")")[0] == right)

    def _video(self, task: str, name: str) -> Path:
        folder = Path(self.config.path) / "video"
        usual = folder / FILES[task] / name
        return usual if usual.is_file() or not (folder / task / name).is_file() else folder / task / name


def sampled(video: frames.VideoFile, count: int) -> list[float]:
    """Times of the frames, seconds: `get_index` of the authors' evaluation."""
    last = round(video.seconds * video.rate) - 1
    step = last / count
    return [int(step / 2 + np.round(step * i)) / video.rate for i in range(count)]
