"""What benchmarks on videos share: how many frames, and that prompts are the benchmark's own. Knows no benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from workers.tasks.benchmark import BenchmarkConfig


@dataclass(frozen=True)
class VideoBenchmarkConfig(BenchmarkConfig):
    """What can be chosen for any benchmark on videos."""

    frames: int = 64
    """Most frames that are shown of a video."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 1:
            raise ValueError(f"frames must be at least 1, not {self.frames}")
        if self.templates:
            raise ValueError("templates are for texts: a video's prompt is the benchmark's own; leave them out")
