"""Frames of a video file, decoded with PyAV. Knows no benchmark and no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEEK = 5.0
"""Seconds that are decoded rather than jumped over."""
SIDE = 448
"""Longest side of the frames that are returned, in pixels: a vision tower sees no more, and an hour would not fit."""


@dataclass(frozen=True)
class VideoFile:
    """What a file says of itself."""

    file: Path
    seconds: float
    """Length of its pictures."""
    rate: float
    """Frames a second, on average."""


@contextmanager
def _opened(file: Path):
    """The file's container and its first stream of pictures. Raises ValueError, one line, whatever goes wrong."""
    try:
        import av
    except ModuleNotFoundError:
        raise ValueError(f"{file}: reading videos needs the package av: pip install 'namm[video]'") from None
    find(file)
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise ValueError(f"{file}: holds no pictures; is it the right file?")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, EOFError) as error:
        reason = (error.strerror if isinstance(error, av.error.FFmpegError) else "") or type(error).__name__
        raise ValueError(f"{file}: cannot be read as a video ({reason}); is the file whole?") from None


def find(file: Path) -> None:
    """Raises ValueError, one line, where there is no such file."""
    if not file.is_file():
        raise ValueError(f"{file}: there is no such video: bring it there, or name the folder that has it (tasks.path)")


def look(file: Path) -> VideoFile:
    """Length and rate of a video. Raises ValueError, one line, if the file is missing or damaged."""
    with _opened(file) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / 1e6
        else:
            seconds = 0.0
        if not rate or seconds <= 0:
            raise ValueError(f"{file}: does not say how long it is; is the file whole?")
        return VideoFile(file, seconds, float(rate))


def at(video: VideoFile, seconds: list[float]) -> np.ndarray:
    """The frames shown at the given times, in ascending order: (len(seconds), height, width, 3) uint8, RGB.

    A time after the last frame gives the last frame. Raises ValueError, one line, if a frame cannot be decoded.
    """
    frames = []
    with _opened(video.file) as (container, stream):
        stream.thread_type = "AUTO"
        start = float((stream.start_time or 0) * stream.time_base)
        shown, following = None, None
        rest: Iterator = container.decode(stream)
        for wanted in seconds:
            due = wanted + start + 0.5 / video.rate  # half a frame of tolerance for rounded times
            if following is None or due - following.time > SEEK:
                container.seek(max(0, int((wanted + start) / stream.time_base)), stream=stream)
                rest, shown, following = container.decode(stream), None, None
            while following is None or following.time <= due:
                shown, following = following or shown, next(rest, None)
                if following is None:
                    break
            picture = shown or following
            if picture is None:
                raise ValueError(f"{video.file}: has no frame at {wanted:.2f} s; is the file whole?")
            frames.append(_array(picture))
    return np.stack(frames)


def _array(picture) -> np.ndarray:
    """(height, width, 3) uint8, its longest side at most SIDE."""
    scale = min(1.0, SIDE / max(picture.width, picture.height))
    if scale == 1.0:
        return picture.to_ndarray(format="rgb24")
    width, height = (max(1, round(side * scale)) for side in (picture.width, picture.height))
    return picture.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
