"""The evaluator: policies and samples in, scores out. A pure function of both; plain Python, no Ray.

A unit of work is some candidates times some samples, run as the rows of one batch. Its shape is fixed by the
configuration, so that a score never depends on which machine computed it or what else it had to do.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict

import numpy as np
import torch

from namm_core import FeatureStatistics, MemoryCache, Namm, StatisticsCollector, policies
from namm_core.generation import answer
from namm_core.policies import Oracle, Policy
from workers import models
from workers.config import EvaluatorConfig
from workers.prompts import PromptStore, content_key
from workers.tasks import OWN_METRIC
from workers.tasks.metrics import score
from workers.tasks.prompt import Prompt, cut, tokenise
from workers.tasks.source import load_tasks
from workers.timing import Timing, measure
from workers.unit import PolicySpec, SampleRef, SampleResult, Unit

RECENT_TOKENS = 2**24
"""Tokens of prompts that a worker holds: 64 MiB."""


class Evaluator:
    """Hosts the frozen model. Raises ValueError when model or tasks cannot be loaded."""

    def __init__(self, config: EvaluatorConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.tasks = load_tasks(config.tasks)
        self.model, self.tokenizer = models.load(config.model)
        self.prompts = PromptStore(config.redis_url)
        self._weights_digest = models.weights_digest(config.model.path, config.model.revision)
        self._tokenizer_digest = models.tokenizer_digest(self.tokenizer)
        self._recent: OrderedDict[SampleRef, Prompt] = OrderedDict()
        self._recent_tokens = 0
        self._tasks_digest = content_key("tasks", **config.tasks)
        self._prompt_choices = dataclasses.asdict(config.prompt)
        self._chat = self.tokenizer.chat_template if config.prompt.chat_template else None
        ends = self.model.generation_config.eos_token_id
        self._ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)

    def evaluate(self, unit: Unit) -> list[list[SampleResult]]:
        """Results[policy][sample] of one unit. Base scores, those of the full cache, are kept in Redis."""
        if [policy.name for policy in unit.policies] != ["full"]:
            return self._evaluate(unit)
        model = self.config.model
        key = content_key(
            "base",
            version=2,
            model=[self._weights_digest, model.dtype, model.ntk_alpha, self.model.device.type],
            tokenizer=self._tokenizer_digest,
            tasks=[self._tasks_digest, *(self.tasks.fingerprint(ref.task) for ref in unit.samples)],
            prompt=[self._prompt_choices, self._chat],
            samples=[list(ref) for ref in unit.samples],
        )

        def base() -> np.ndarray:
            row = [dataclasses.asdict(result) for result in self._evaluate(unit)[0]]
            return np.frombuffer(json.dumps(row).encode(), np.uint8)

        row = json.loads(self.prompts.get_or_make(key, base).tobytes())
        return [[SampleResult(**result) for result in row]]

    def _evaluate(self, unit: Unit) -> list[list[SampleResult]]:
        prompts = [self.prompt(ref) for ref in unit.samples]
        rows = len(unit.policies) * len(prompts)
        wanted = prompts * len(unit.policies)  # row = policy * samples + sample
        policy = self._policy(unit.policies, prompts)
        cache = None if policy is None else MemoryCache(self.model, policy)
        try:
            answers = answer(
                self.model,
                [torch.from_numpy(p.ids).long() for p in wanted],
                [torch.from_numpy(p.reference).long() for p in wanted],
                cache,
                max(p.max_new_tokens for p in prompts),
                self._ends,
            )
        finally:
            if cache is not None:
                cache.detach()
        results = []
        for row in range(rows):
            ref, prompt, got = unit.samples[row % len(prompts)], wanted[row], answers[row]
            text = self.tokenizer.decode(got.tokens[: prompt.max_new_tokens], skip_special_tokens=True)
            prediction = cut(text, prompt.stop)
            results.append(
                SampleResult(
                    *ref,
                    score=self._score(ref, prompt, prediction),
                    logprob=got.logprob,
                    kept=float(np.mean(got.kept)),
                    kept_layers=got.kept,
                    tokens=len(prompt.ids),
                    prediction=prediction.strip(),
                )
            )
        return [results[i : i + len(prompts)] for i in range(0, rows, len(prompts))]

    def statistics(self, samples: list[SampleRef]) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean, variance and count of the spectrogram features over full-cache runs of the samples' prompts."""
        collector = StatisticsCollector(self.config.memory)
        for ref in samples:
            ids = torch.from_numpy(self.prompt(ref).ids).long()[None].to(self.model.device)
            with MemoryCache(self.model, collector) as cache, torch.inference_mode():
                self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        found = collector.collected
        if found is None:
            raise ValueError(
                f"no prompt reaches one update interval ({self.config.memory.update_interval} tokens): lower "
                "memory.update_interval or use longer prompts"
            )
        return found.mean.numpy(), found.var.numpy(), found.count

    def kept_map(self, spec: PolicySpec, ref: SampleRef) -> tuple[list[str], np.ndarray, list[int]]:
        """One prompt's tokens as text, the share of layers and heads (tokens,) that hold each of them after it,
        and the positions that answer it."""
        prompt = self.prompt(ref)
        policy = self._policy((spec,), [prompt])
        if policy is None:
            raise ValueError("the full cache keeps every token: nothing to map")
        held = np.zeros(len(prompt.ids))
        with MemoryCache(self.model, policy) as cache, torch.inference_mode():
            ids = torch.from_numpy(prompt.ids).long()[None].to(self.model.device)
            self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            heads = [head.cpu() for layer in range(len(cache.layers)) for head in cache.kept_positions(layer)[0]]
        for head in heads:
            held[head.numpy()] += 1 / len(heads)
        return (
            [self.tokenizer.decode([token]) for token in prompt.ids.tolist()],
            held,
            prompt.relevant.tolist(),
        )

    def timing(self, spec: PolicySpec, ref: SampleRef, tokens: int) -> Timing:
        """What one sample's prompt and `tokens` forced tokens after it cost under a policy."""
        prompt = self.prompt(ref)
        return measure(self.model, torch.from_numpy(prompt.ids).long(), self._policy((spec,), [prompt]), tokens)

    def prompt(self, ref: SampleRef) -> Prompt:
        """The sample's token ids, from this process, from Redis, or made anew."""
        if ref in self._recent:
            self._recent.move_to_end(ref)
            return self._recent[ref]
        key = content_key(
            "prompt",
            version=3,
            tokenizer=self._tokenizer_digest,
            tasks=[self._tasks_digest, self.tasks.fingerprint(ref.task)],
            prompt=[self._prompt_choices, self._chat],
            sample=list(ref),
        )
        packed = self.prompts.get_or_make(key, lambda: self._tokenised(ref).pack())
        prompt = self._recent[ref] = Prompt.unpack(packed)
        self._recent_tokens += len(prompt.ids)
        while self._recent_tokens > RECENT_TOKENS and len(self._recent) > 1:
            self._recent_tokens -= len(self._recent.popitem(last=False)[1].ids)
        return prompt

    def prepare(self, samples: list[SampleRef]) -> int:
        """Renders and tokenises the samples' prompts, which no other worker then has to; returns how many were new."""
        misses = self.prompts.misses
        for ref in samples:
            self.prompt(ref)
        return self.prompts.misses - misses

    def _tokenised(self, ref: SampleRef) -> Prompt:
        return tokenise(self.tasks.sample(*ref), self.tokenizer, self.config.prompt)

    def _score(self, ref: SampleRef, prompt: Prompt, prediction: str) -> float:
        if prompt.metric == OWN_METRIC:
            return self.tasks.grade(*ref, prediction)
        return score(prompt.metric, prediction, list(prompt.answers), prompt.classes or None)

    def _policy(self, specs: tuple[PolicySpec, ...], prompts: list[Prompt]) -> Policy | None:
        """The cache policy of a batch whose rows are specs x prompts; None is the stock full cache."""
        name, interval = specs[0].name, self.config.memory.update_interval
        if name == "namm":
            theta = np.repeat(np.stack([spec.theta for spec in specs]), len(prompts), axis=0)
            given = specs[0].statistics
            return Namm(self.config.memory, theta, None if given is None else FeatureStatistics(*given))
        if len(specs) > 1:
            raise ValueError("only namm takes several policies in one unit")
        if name == "full":
            return None
        if name == "oracle":
            if not all(len(p.relevant) for p in prompts):
                raise ValueError(
                    "oracle: these tasks do not say where their answers stand; leave it out of the policies"
                )
            return Oracle([torch.from_numpy(p.relevant).long() for p in prompts], interval)
        return policies.named(name)(budget=_budgets(specs[0].budget, prompts, interval), update_interval=interval)


def _budgets(fraction: float | None, prompts: list[Prompt], interval: int) -> torch.Tensor:
    """Tokens to keep at each update so that, with the tail, `fraction` of each prompt is held at its end.

    A fixed number from the start is the strongest form: nothing is forgotten before the memory is full.
    """
    if fraction is None:
        raise ValueError("this policy needs a budget")
    lengths = [len(p.ids) for p in prompts]
    return torch.tensor([max(round(fraction * n) - n % interval, 1) for n in lengths])
