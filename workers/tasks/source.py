"""What most task sets have in common, as defaults of a `TaskSet`. Knows no task."""

from __future__ import annotations


class Source:
    """Base of a task set: endless samples that the configuration alone decides, and that a named metric scores.

    A subclass has at least the `tasks` and the `sample` of `workers.protocols.TaskSet`.
    """

    locates: bool = False
    """Whether samples say which places of a prompt answer it."""
    separates: bool = False
    """Whether samples say where a prompt's context ends and its question begins."""

    def size(self, task: str, split: str) -> int | None:
        """None: there are as many samples as anyone asks for."""
        return None

    def answer_limit(self, task: str) -> int | None:
        """None: how long an answer may be is only known from a sample."""
        return None

    def fingerprint(self, task: str) -> str:
        """Empty: the configuration decides everything."""
        return ""

    def grade(self, task: str, split: str, index: int, prediction: str) -> float:
        """Raises ValueError: samples are scored by the metric that they name."""
        raise ValueError(
            f"{task} does not grade its own samples: their metric names a function of workers.tasks.metrics"
        )
