"""From a model's answers to scores: text of the tokens, cut at its end, graded by the task's metric. Knows no model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from namm_core.answering import Answer
from workers.protocols import RowResult, TaskSet
from workers.tasks import OWN_METRIC
from workers.tasks.metrics import score
from workers.tasks.prompt import Prompt, cut


def graded(tasks: TaskSet[Any], tokenizer: Tokenizer, prompts: list[Prompt], answers: list[Answer]) -> list[RowResult]:
    """What the answers to prompts are worth; the prompts are of `tasks`, the tokens of `tokenizer`."""
    results = []
    for prompt, got in zip(prompts, answers, strict=True):
        text = str(tokenizer.decode(got.tokens, skip_special_tokens=True))
        prediction = cut(text, prompt.stop, prompt.drops_breaks)
        if prompt.metric == OWN_METRIC:
            value = tasks.grade(*prompt.ref, prediction)
        else:
            value = score(prompt.metric, prediction, prompt.answers, prompt.classes or None)
        results.append(RowResult(value, got.logprob, got.kept, prediction.strip()))
    return results
