"""What a memory holds of real prompts, token by token, and what its scores react to. Gives arrays; draws nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from namm_core import MemoryCache, Namm
from namm_core.protocols import State, View
from namm_core.sensitivity import own_derivatives
from workers.evaluator import Evaluator
from workers.targets.language import Language
from workers.tasks.prompt import tokenise
from workers.unit import SampleRef

FACT, QUESTION, FILLER, RELEVANT, OTHER = "facts", "question", "filler", "relevant", "other"


@dataclass(frozen=True)
class Reading:
    """What a memory held of one prompt right after reading it."""

    sample: SampleRef
    tokens: list[str]
    """The prompt's tokens as text."""
    kinds: list[str]
    """Kind of each token: facts, question or filler; relevant or other if the task does not know its facts."""
    relevant: np.ndarray
    """(tokens,) bool, what an oracle would keep."""
    held: np.ndarray
    """(layers, kv_heads, tokens) bool."""
    judged: int
    """Tokens before the end of the last update; those after it are held because nobody has judged them yet."""


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
        super().__init__(namm.config, namm.theta, namm.statistics)
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
    prompt = target.sample(ref)
    length = len(prompt.ids)
    with MemoryCache(target.model, probe) as cache, torch.no_grad():
        target.read(prompt, cache)
        layers = [[head.cpu().numpy() for head in cache.kept_positions(i)[0]] for i in range(len(cache.layers))]
    held = np.zeros((len(layers), len(layers[0]), length), bool)
    for i, heads in enumerate(layers):
        for j, positions in enumerate(heads):
            held[i, j, positions] = True
    relevant = np.zeros(length, bool)
    relevant[prompt.relevant] = True
    kinds = _kinds(target, ref, relevant)
    return Reading(ref, target.labels(prompt), kinds, relevant, held, length - length % probe.update_interval)


def _kinds(target: Language, ref: SampleRef, relevant: np.ndarray) -> list[str]:
    """The kind of each token; if a task knows its facts, the question is the prompt's last line."""
    sample = target.tasks.sample(*ref)
    if not sample.facts:
        return [RELEVANT if marked else OTHER for marked in relevant]
    found = np.full(len(relevant), FILLER, dtype=object)
    question = (sample.prompt.rstrip().rfind("\n"), len(sample.prompt))
    for kind, spans in ((FACT, sample.facts), (QUESTION, (question,) if question[0] >= 0 else ())):
        marked = dataclasses.replace(sample, relevant=spans)  # spans become tokens as the relevant ones do
        found[tokenise(marked, target.tokenizer, target.config.prompt).relevant] = kind
    return found.tolist()
