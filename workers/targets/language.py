"""Language models: a prompt's tokens in, greedy text out, scored by the task's metric."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import torch

from namm_core import MemoryCache
from namm_core.answering import answer
from workers import models
from workers.array_cache import ArrayCache, content_key
from workers.config import EvaluatorConfig, ModelConfig
from workers.protocols import FACT, FILLER, QUESTION, RowResult, Target
from workers.tasks.grading import graded
from workers.tasks.loading import load_tasks
from workers.tasks.prompt import Prompt, tokenise
from workers.timing import Timing, measure
from workers.unit import SampleRef

RECENT_TOKENS = 2**24
"""Tokens of prompts that a worker holds in memory: 64 MiB."""


class Language(Target[Prompt]):
    """A causal language model from transformers."""

    stores = True

    def __init__(self, config: EvaluatorConfig, arrays: ArrayCache) -> None:
        """See `Target`."""
        self.config = config
        self.tasks = load_tasks(config.tasks)
        self.model, self.tokenizer = models.load(config.model)
        self.arrays = arrays
        self._weights_digest = models.weights_digest(config.model.path, config.model.revision, config.model.gguf)
        self._tokenizer_digest = models.tokenizer_digest(self.tokenizer)
        self._recent: OrderedDict[SampleRef, Prompt] = OrderedDict()
        self._recent_tokens = 0
        self._tasks_digest = content_key("tasks", **config.tasks)
        self._prompt_choices = dataclasses.asdict(config.prompt)
        self._chat = self.tokenizer.chat_template if config.prompt.chat_template else None
        ends = self.model.generation_config.eos_token_id
        self._ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)

    @staticmethod
    def check(config: ModelConfig) -> None:
        """See `Target.check`."""
        models.check(config)

    def sample(self, ref: SampleRef) -> Prompt:
        """The sample's token ids: from this process or from Redis if they are there, else made."""
        if ref in self._recent:
            self._recent.move_to_end(ref)
            return self._recent[ref]
        key = content_key(
            "prompt",
            version=8,
            tokenizer=self._tokenizer_digest,
            tasks=[self._tasks_digest, self.tasks.fingerprint(ref.task)],
            prompt=[self._prompt_choices, self._chat],
            sample=list(ref),
        )
        packed = self.arrays.get_or_make(
            key, lambda: tokenise(self.tasks.sample(*ref), self.tokenizer, self.config.prompt).pack()
        )
        prompt = self._recent[ref] = Prompt.unpack(packed)
        self._recent_tokens += prompt.tokens
        while self._recent_tokens > RECENT_TOKENS and len(self._recent) > 1:
            self._recent_tokens -= self._recent.popitem(last=False)[1].tokens
        return prompt

    def context(self, sample: Prompt) -> int | None:
        """What the task says. See `Target.context`."""
        return sample.context or None

    def read(self, sample: Prompt, cache: MemoryCache) -> None:
        """Feeds the prompt in one forward call."""
        ids = torch.from_numpy(sample.ids).long()[None].to(self.model.device)
        self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def run(self, rows: list[Prompt], cache: MemoryCache | None) -> list[RowResult]:
        """Answers the prompts greedily; a score is the task's metric."""
        answers = answer(
            self.model,
            [torch.from_numpy(p.ids).long() for p in rows],
            [torch.from_numpy(p.reference).long() for p in rows],
            cache,
            [p.max_new_tokens for p in rows],
            self._ends,
            [p.scored for p in rows],
        )
        return graded(self.tasks, self.tokenizer, rows, answers)

    def identity(self, refs: tuple[SampleRef, ...]) -> dict[str, Any]:
        """Weights and their arithmetic, tokenizer, tasks, and how prompts are made."""
        model = self.config.model
        return {
            "model": [self._weights_digest, model.dtype, model.ntk_alpha, self.model.device.type],
            "tokenizer": self._tokenizer_digest,
            "tasks": [self._tasks_digest, *(self.tasks.fingerprint(ref.task) for ref in refs)],
            "prompt": [self._prompt_choices, self._chat],
        }

    def labels(self, sample: Prompt) -> list[str]:
        """The tokens as text."""
        return [str(self.tokenizer.decode([token])) for token in sample.ids.tolist()]

    def kinds(self, ref: SampleRef, sample: Prompt) -> list[str]:
        """The kind of each token; if a task knows its facts, the question is the prompt's last line."""
        whole = self.tasks.sample(*ref)
        if not whole.facts:
            return super().kinds(ref, sample)
        found = [FILLER] * sample.tokens
        question = (whole.prompt.rstrip().rfind("\n"), len(whole.prompt))
        for kind, spans in ((FACT, whole.facts), (QUESTION, (question,) if question[0] >= 0 else ())):
            marked = dataclasses.replace(whole, relevant=spans)  # spans become tokens as the relevant ones do
            for position in tokenise(marked, self.tokenizer, self.config.prompt).relevant.tolist():
                found[position] = kind
        return found

    def measure(self, sample: Prompt, cache: MemoryCache | None, tokens: int) -> Timing:
        """See `Target.measure`."""
        return measure(self.model, torch.from_numpy(sample.ids).long(), cache, tokens)
