"""What a memory holds of one prompt, token by token, right after reading it. Gives arrays; draws nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from namm_core import MemoryCache
from workers.protocols import Target
from workers.unit import SampleRef


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


def reading(target: Target[Any], cache: MemoryCache, ref: SampleRef, update_interval: int) -> Reading:
    """Shows the model a sample with a fresh cache of one row, and notes what the cache holds at the end."""
    sample = target.sample(ref)
    target.read(sample, cache)
    layers = [[head.cpu().numpy() for head in cache.kept_positions(i)[0]] for i in range(len(cache.layers))]
    length = cache.seen
    held = np.zeros((len(layers), len(layers[0]), length), bool)
    for i, heads in enumerate(layers):
        for j, positions in enumerate(heads):
            held[i, j, positions] = True
    relevant = np.zeros(length, bool)
    relevant[sample.relevant] = True
    judged = length - length % update_interval
    return Reading(ref, target.labels(sample)[:length], target.kinds(ref, sample)[:length], relevant, held, judged)
