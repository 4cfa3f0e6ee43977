"""The evaluator: policies and samples in, scores out. A pure function of both; plain Python, no Ray.

A unit of work is some candidates times some samples, run as the rows of one batch. Its shape is fixed by the
configuration, so that a score never depends on which machine computed it or what else that machine had to do. What
the model is, and how it is scored, is up to the target (`workers.targets`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

from namm_core import FeatureStatistics, MemoryCache, Namm, StatisticsCollector, policies
from namm_core.attention import fused
from namm_core.once import Once
from namm_core.protocols import Policy
from workers import plugins, targets
from workers.array_cache import ArrayCache, content_key
from workers.config import EvaluatorConfig
from workers.protocols import Shown
from workers.reading import Reading, reading
from workers.timing import Timing
from workers.unit import PolicySpec, SampleRef, SampleResult, Unit


class Evaluator:
    """Hosts the frozen model of one target, and evaluates policies with it.

    Raises ValueError, one line, if plug-ins, model or tasks cannot be loaded, or the fused kernels cannot run.
    """

    def __init__(self, config: EvaluatorConfig) -> None:
        torch.set_num_threads(config.threads)
        plugins.add(config.plugins)
        self.config = config
        self.arrays = ArrayCache(config.redis_url)
        self.target = targets.find(config.target)(config, self.arrays)
        self.fused = _fused(config.fused, self.target.model.device)
        """Whether attention under a memory goes through Triton's kernels."""

    def evaluate(self, unit: Unit) -> list[list[SampleResult]]:
        """Results[policy][sample] of one unit; those of the full cache, the base scores, are kept in Redis.

        Raises ValueError, one line, for policies that cannot share a batch, and for what a policy refuses.
        """
        if unit.policies != (PolicySpec("full"),):
            return self._evaluate(unit)
        samples = [list(ref) for ref in unit.samples]
        key = content_key(
            "base", version=4, target=self.config.target, samples=samples, **self.target.identity(unit.samples)
        )

        def base() -> np.ndarray:
            row = [dataclasses.asdict(result) for result in self._evaluate(unit)[0]]
            return np.frombuffer(json.dumps(row).encode(), np.uint8)

        row = json.loads(self.arrays.get_or_make(key, base).tobytes())
        return [[SampleResult(**result) for result in row]]

    def _evaluate(self, unit: Unit) -> list[list[SampleResult]]:
        if unit.policies[0].protocol == "context" and len(unit.samples) > 1:  # each with a context of its own length
            apart = [self._evaluate(dataclasses.replace(unit, samples=(ref,))) for ref in unit.samples]
            return [[results for (results,) in policy] for policy in zip(*apart, strict=True)]
        samples = [self.target.sample(ref) for ref in unit.samples]
        with self._cache(unit.policies, samples) as cache, torch.inference_mode():
            # row = policy * samples + sample
            outcomes = self.target.run(samples * len(unit.policies), cache)
        results = []
        for row, got in enumerate(outcomes):
            ref, sample = unit.samples[row % len(samples)], samples[row % len(samples)]
            results.append(
                SampleResult(
                    *ref,
                    score=got.score,
                    logprob=got.logprob,
                    kept=float(np.mean(got.kept)),
                    kept_layers=got.kept,
                    tokens=sample.tokens,
                    prediction=got.prediction,
                )
            )
        return [results[i : i + len(samples)] for i in range(0, len(results), len(samples))]

    def statistics(self, samples: list[SampleRef]) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean (features,), variance (features,) and count of the spectrogram features, over the samples' prompts read
        with the full cache. Raises ValueError, one line, if no prompt reaches one update interval."""
        collector = StatisticsCollector(self.config.memory)
        for ref in samples:
            with MemoryCache(self.target.model, collector) as cache, torch.inference_mode():
                self.target.read(self.target.sample(ref), cache)
        found = collector.collected
        if found is None:
            raise ValueError(
                f"no prompt reaches one update interval ({self.config.memory.update_interval} tokens): lower "
                "memory.update_interval or use longer prompts"
            )
        return found.mean.numpy(), found.var.numpy(), found.count

    def reading(self, spec: PolicySpec, ref: SampleRef) -> Reading:
        """What a policy holds of one prompt, token by token. Raises ValueError for the full cache."""
        with self._cache((spec,), [self.target.sample(ref)]) as cache, torch.inference_mode():
            if cache is None:
                raise ValueError("the full cache keeps every token: nothing to map")
            return reading(self.target, cache, ref, self.config.memory.update_interval)

    def timing(self, spec: PolicySpec, ref: SampleRef, tokens: int) -> Timing | None:
        """Time and memory for one sample's prompt and `tokens` forced tokens; None if the target has no speeds."""
        sample = self.target.sample(ref)
        with self._cache((spec,), [sample]) as cache:
            return self.target.measure(sample, cache, tokens)

    def prepare(self, samples: list[SampleRef]) -> int:
        """Renders and tokenises the samples' prompts, so that no other worker has to; returns how many were new."""
        misses = self.arrays.misses
        for ref in samples if self.target.stores else ():
            self.target.sample(ref)
        return self.arrays.misses - misses

    @contextmanager
    def _cache(self, specs: tuple[PolicySpec, ...], samples: list[Shown]) -> Iterator[MemoryCache | None]:
        """A fresh cache for the rows specs x samples; None is the stock full cache."""
        policy = self._policy(specs, samples)
        if policy is None:
            yield None
            return
        tiled = True if isinstance(policy, Once) else None  # its one block is as long as the context
        with MemoryCache(self.target.model, policy, tiled, self.fused) as cache:
            yield cache

    def _policy(self, specs: tuple[PolicySpec, ...], samples: list[Shown]) -> Policy | None:
        """The cache policy of a batch whose rows are specs x samples; None is the stock full cache."""
        spec, context = specs[0], self._context(specs[0], samples)
        interval = context or self.config.memory.update_interval
        if not all(spec.shares_batch(other) for other in specs[1:]):
            raise ValueError("several policies in one unit must all be namm and differ in theta alone")
        if spec.name == "namm":
            return _within(context, self._namm(specs, samples, interval))
        given = policies.check(spec.name, spec.options, spec.budget)
        if spec.name == "full":
            return None
        if spec.name == "oracle":
            given["relevant"] = _relevant(samples)
        kind = policies.named(spec.name)
        if kind.takes_budget:
            given["budget"] = _budgets(spec.budget, [sample.tokens for sample in samples], interval)
            if given.get("whole_layers") and spec.budget is not None:  # as many of them as the size pays for
                layers = self.target.model.config.get_text_config().num_hidden_layers
                given["whole_layers"] = min(given["whole_layers"], int(spec.budget * layers))
        return _within(context, kind(update_interval=interval, **given))

    def _context(self, spec: PolicySpec, samples: list[Shown]) -> int | None:
        """Tokens after which the memory of the one sample forgets, once; None: as it streams.

        Raises ValueError, one line, where the task does not say where its question begins.
        """
        if spec.protocol == "streaming" or spec.name == "full":
            return None
        context = self.target.context(samples[0])
        if context is None:
            raise ValueError("protocol context: this task does not say where its question begins")
        return context

    def _namm(self, specs: tuple[PolicySpec, ...], samples: list[Shown], interval: int) -> Namm:
        """One memory for all rows: row = policy * samples + sample; interval: tokens between two updates."""
        thetas = [spec.theta for spec in specs if spec.theta is not None]
        if len(thetas) < len(specs):
            raise ValueError("namm needs a theta, the parameters of its scorer")
        if specs[0].options:
            raise ValueError("namm has no options: its theta and `memory` decide what it keeps")
        memory, fraction, budgets = self.config.memory, specs[0].budget, None
        if memory.selection == "budget":
            budgets = _budgets(fraction, [sample.tokens for sample in samples], interval)
            budgets = budgets.repeat(len(specs))
        elif fraction is not None:
            raise ValueError("namm takes no budget: its threshold decides what it keeps (memory.selection)")
        given = specs[0].statistics  # the same bits in all of them
        statistics = None if given is None else FeatureStatistics(*given)
        return Namm(memory, np.repeat(np.stack(thetas), len(samples), axis=0), statistics, budgets)


def _within(context: int | None, policy: Policy) -> Policy:
    """The policy as it is, or forgetting once, after the context."""
    return policy if context is None else Once(policy, context)


def _fused(choice: Literal["auto", True, False], device: torch.device) -> bool:
    """Whether to use the kernels on a device. Raises ValueError, one line, if they are asked for and cannot run."""
    if choice == "auto":
        return device.type == "cuda" and fused.kernels() is not None
    if choice:
        fused.check(device)
    return choice


def _relevant(samples: list[Shown]) -> list[torch.Tensor]:
    """Per row, (relevant,) int64 positions that answer the sample. Raises ValueError if a sample does not know them."""
    if not all(len(sample.relevant) for sample in samples):
        raise ValueError("oracle: these tasks do not say where their answers stand; leave it out of the policies")
    return [torch.from_numpy(sample.relevant).long() for sample in samples]


def _budgets(fraction: float | None, lengths: list[int], interval: int) -> torch.Tensor:
    """(rows,) int64, tokens kept at each update so that, with the tail, `fraction` of each prompt is held at its end.

    A number that is fixed from the start is the strongest form: nothing is forgotten before the memory is full.
    Raises ValueError without a fraction.
    """
    if fraction is None:
        raise ValueError("this policy needs a budget")
    return torch.tensor([max(round(fraction * n) - n % interval, 1) for n in lengths])
