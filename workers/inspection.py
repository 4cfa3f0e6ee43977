"""What a memory holds of real prompts, token by token, and what its scores react to. Gives arrays; draws nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from namm_core import MemoryCache, Namm
from namm_core.protocols import State, View
from namm_core.sensitivity import own_derivatives
from workers.evaluator import Evaluator
from workers.reading import Reading, reading
from workers.targets.language import Language
from workers.unit import SampleRef


@dataclass(frozen=True)
class Sensitivity:
    """Mean |d score / d feature| with respect to a token's own features, over all updates of all prompts."""

    layers: np.ndarray
    """(layers, features): age (sines, cosines), then spectrogram, in score per unit of the embedding."""
    tokens: int
    """How many scores each layer's mean is over, at least."""


class Probe(Namm):
    """A NAMM that also notes, at every update, how its scores react to each feature."""

    def __init__(self, namm: Namm) -> None:
        super().__init__(namm.config, namm.theta, namm.statistics, namm.budget and namm.budget.value)
        self.sums: dict[int, np.ndarray] = {}
        self.counts: dict[int, int] = {}

    def keep(self, state: State, view: View) -> torch.Tensor:
        """(rows, kv_heads, keys) bool, as `Namm.keep`."""
        derivatives = own_derivatives(self, state, view)
        judged = (view.positions >= 0) & (view.positions != view.newest[:, None, None])  # the newest is always kept
        total = derivatives[judged].abs().double().sum(0).cpu().numpy()
        self.sums[view.layer] = self.sums.get(view.layer, 0.0) + total
        self.counts[view.layer] = self.counts.get(view.layer, 0) + int(judged.sum())
        return super().keep(state, view)


def inspect(evaluator: Evaluator, namm: Namm, samples: list[SampleRef]) -> tuple[list[Reading], Sensitivity]:
    """Reads each sample's prompt with the memory.

    Raises ValueError, one line, for a target other than `language`, and if no prompt reaches one update.
    """
    target = evaluator.target
    if not isinstance(target, Language):
        raise ValueError(f"what a memory does can be looked into in language alone, not {evaluator.config.target}")
    probe = Probe(namm)
    readings = [_read(target, probe, ref) for ref in samples]
    if not probe.counts:
        raise ValueError(
            f"no prompt reaches one update ({namm.config.update_interval} tokens): nothing is ever forgotten here"
        )
    layers = sorted(probe.counts)
    means = np.stack([probe.sums[layer] / max(probe.counts[layer], 1) for layer in layers])
    return readings, Sensitivity(means, min(probe.counts.values()))


def _read(target: Language, probe: Probe, ref: SampleRef) -> Reading:
    with MemoryCache(target.model, probe) as cache, torch.no_grad():
        return reading(target, cache, ref, probe.update_interval)
