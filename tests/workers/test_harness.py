"""Scores of `lm_eval`'s generation tasks against `lm_eval`'s own evaluation of the same answers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lm_eval", reason='lm_eval is not installed: pip install "namm[benchmarks]"')
from lm_eval.api.model import LM

ANSWERS = ("{}", " The answer is {}.", "#### {}", "So the answer is ({}).\n\nQ: and more", "none of it", "", "4", " B")


class Says(LM):
    """A model behind `lm_eval`'s interface that gives fixed answers, and notes what it was asked."""

    def __init__(self, answers: list[str]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        return [self.answers[request.doc_id] for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError
