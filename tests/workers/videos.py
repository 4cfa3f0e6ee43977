"""Small files in the layouts of the video benchmarks, with real videos in them."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np

RATE = 10


def write_video(file: Path, seconds: float, keyframes: int = 12) -> None:
    """A video at RATE frames a second: frame i is grey of the value 2 i + 20, its left half 255 where i is odd."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", keyframes
        stream.bit_rate = 2_000_000
        for i in range(round(seconds * RATE)):
            picture = np.full((48, 64, 3), 2 * i + 20, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def shown(frames: np.ndarray) -> list[int]:
    """Which frames of `write_video` these are."""
    return [round((float(frame.mean()) - 20) / 2) for frame in frames]


def longvideobench(folder: Path, videos: int = 3) -> list[dict]:
    """A small LongVideoBench; returns its records."""
    records = []
    for i in range(videos):
        write_video(folder / "videos" / f"v{i}.mp4", 4)
        subtitles = [
            {"start": "00:00:10.000", "end": "00:00:11.500", "line": f"hello {i}"},
            {"start": "00:00:13.000", "end": "00:00:13.900", "line": "goodbye"},
        ]
        if i == 1:
            subtitles = [{"timestamp": [10.0, 11.5], "text": "hello 1"}, {"timestamp": [13.0, None], "text": "goodbye"}]
        (folder / "subtitles").mkdir(exist_ok=True)
        (folder / "subtitles" / f"v{i}_en.json").write_text(json.dumps(subtitles))
        records.append(
            {
                "video_id": f"v{i}",
                "id": f"v{i}_0",
                "video_path": f"v{i}.mp4",
                "subtitle_path": f"v{i}_en.json",
                "question": "What is shown?",
                "candidates": ["a dog", "a cat", "a bird"],
                "correct_choice": i % 3,
                "position": [3],
                "topic_category": "KS-Knowledge-STEM",
                "question_category": "S2E",
                "level": "L1-Perception",
                "duration_group": 15,
                "duration": 4.0,
                "starting_timestamp_for_subtitles": 10.0,
            }
        )
    (folder / "lvb_val.json").write_text(json.dumps(records))
    return records


def mlvu(folder: Path, videos: int = 3) -> list[dict]:
    """A small MLVU with the task plotQA; returns its records."""
    records = []
    for i in range(videos):
        write_video(folder / "video" / "1_plotQA" / f"movie_{i}.mp4", 4)
        records.append(
            {
                "video": f"movie_{i}.mp4",
                "duration": 4.0,
                "question": "What colour is the car?",
                "candidates": ["red", "green", "blue", "white"],
                "answer": ["red", "green", "blue", "white"][i % 4],
                "question_type": "plotQA",
            }
        )
    (folder / "json").mkdir(exist_ok=True)
    (folder / "json" / "1_plotQA.json").write_text(json.dumps(records, indent=4))
    return records
