"""What a sample with moving pictures is. Knows no model, no files and no task."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from workers.tasks import Sample

MARK = "<video>"
"""Stands in a prompt for pictures: one for all frames, or as many as there are frames, one for each in turn."""


@dataclass(frozen=True)
class VideoSample(Sample):
    """A prompt whose text has `MARK` where the frames belong; `relevant` are spans of its text beside the marks."""

    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8), compare=False, repr=False)
    """(frames, height, width, 3) uint8, RGB."""
    evidence: tuple[int, ...] = ()
    """Frames that an oracle keeps, ascending; () where that is not known."""
    choices: tuple[str, ...] = ()
    """All answers that may be right; () where that is not known. Chance is 1 / their number."""
