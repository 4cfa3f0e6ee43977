"""What the matrix of architectures is made of: one memory, its reference, and how both are run. Checks nothing."""

from __future__ import annotations

import inspect

import numpy as np
from transformers import LlamaForCausalLM

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig
from tests.namm_core.architectures import ByNamm
from tests.namm_core.reference import NUM_PARAMETERS, Reference, Statistics

INTERVAL, PROMPT, NEW = 16, 90, 8  # an update falls due in decode, at 96, and a tail is left over
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"

THETA = np.random.default_rng(58).normal(0, 0.3, NUM_PARAMETERS).astype(np.float32)
_MEAN, _VAR = np.full(17, 0.06), np.full(17, 0.01)


def namm(selection: str) -> Namm:
    config = NammConfig(update_interval=INTERVAL, n_fft=32, hop=16, selection=selection)
    return Namm(config, THETA, FeatureStatistics(_MEAN, _VAR, 99))


def by_namm(selection: str) -> ByNamm:
    return ByNamm(Reference(THETA, selection, Statistics(_MEAN, _VAR, 99)))


def generate(model, ids, policy, **options):
    """(what `generate` returns, the cache)"""
    with MemoryCache(model, policy) as cache:
        options = {"max_new_tokens": NEW, "do_sample": False, CACHE: cache, **options}
        return model.generate(ids, **options), cache


def positions(cache, row=0):
    return [[head.tolist() for head in cache.kept_positions(layer)[row]] for layer in range(len(cache.layers))]
