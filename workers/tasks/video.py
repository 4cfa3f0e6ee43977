"""What a sample with a video is. Knows no model, no files and no task."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workers.tasks import Sample

MARK = "<video>"
"""Stands in a prompt for pictures: one mark for all frames, or one for each frame in turn."""


@dataclass(frozen=True)
class VideoSample(Sample):
    """A prompt whose text has `MARK` where the frames belong; `relevant` holds spans of the text around the marks."""

    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8), compare=False, repr=False)
    """(frames, height, width, 3) uint8, RGB."""
    evidence: tuple[int, ...] = ()
    """Indices of the frames that an oracle keeps, ascending; () if they are not known."""
    choices: tuple[str, ...] = ()
    """All answers that may be right; () if they are not known. Chance is 1 / their number."""
