"""A language model that says so in each of its answers: a target from outside the package."""

from __future__ import annotations

import dataclasses

from transformers.cache_utils import Cache

from workers.protocols import RowResult
from workers.targets.language import Language
from workers.tasks.prompt import Prompt


class Reader(Language):
    """As `Language`, with another text around its predictions."""

    def run(self, rows: list[Prompt], cache: Cache | None) -> list[RowResult]:
        """Answers prompts."""
        return [dataclasses.replace(got, prediction=f"read: {got.prediction}") for got in super().run(rows, cache)]
