"""The figures of `namm inspect`, from what a memory held of some prompts. Knows no model, files or pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from namm_core import plugins
from namm_core.config import FEATURES, NammConfig

if TYPE_CHECKING:  # imports torch
    from workers.inspection import Sensitivity
    from workers.reading import Reading

AGE_BINS = 48
KINDS = ("facts", "filler", "question", "relevant", "other")
"""Kinds of token, in the order of their rows; those that do not occur have none."""


def summarise(readings: Sequence[Reading], sensitivity: Sensitivity, config: NammConfig) -> dict[str, Any]:
    """The mapping of `inspection.json`.

    Fractions are means over prompts, which have equal weight; by age and by kind, tokens have equal weight. `judged`
    leaves out the tokens behind a prompt's last update, which are held because no update has seen them; it is None if
    there are no others. Raises ValueError without readings.
    """
    if not readings:
        raise ValueError("there is nothing to look at: give at least one sample")
    names = feature_names(config)
    return {
        "samples": [
            {
                "task": r.sample.task,
                "index": r.sample.index,
                "tokens": len(r.tokens),
                "judged": r.judged,
                "kept": float(r.held.mean()),
            }
            for r in readings
        ],
        "update_interval": config.update_interval,
        "kept": float(np.mean([r.held.mean() for r in readings])),
        "kept_by_head": np.mean([r.held.mean(axis=2) for r in readings], axis=0).tolist(),
        "kept_by_age": _by_age(readings),
        "kept_by_kind": _by_kind(readings),
        "sensitivity": {
            "features": names,
            "mean": sensitivity.layers.mean(axis=0).tolist(),
            "layers": sensitivity.layers.tolist(),
            "tokens": sensitivity.tokens,
        },
    }


def feature_names(config: NammConfig) -> list[str]:
    """Names of a token's features, in the order of its embedding.

    A period is in tokens, a frequency in cycles per `n_fft` queries.
    """
    return [name for feature in config.features for name in _names(feature, config)]


def _names(feature: str, config: NammConfig) -> list[str]:
    if feature == "age":
        half = config.age_dim // 2
        periods = [2 * math.pi * float(config.age_max_period) ** (j / half) for j in range(half)]
        return [f"{kind} of age, period {period:,.0f}" for kind in ("sine", "cosine") for period in periods]
    width = plugins.find_class(FEATURES, feature, "feature")().width(config)
    if feature == "spectrum":
        return [f"frequency {f}" for f in range(width)]
    name = feature.replace("_", " ")
    return [name] if width == 1 else [f"{name}, {i + 1} of {width}" for i in range(width)]


def _by_age(readings: Sequence[Reading]) -> dict[str, Any]:
    """Held fraction of each layer by age, which is 0 for a prompt's last token; bins are [edge, next edge)."""
    longest = max(len(r.tokens) for r in readings)
    width = max(1, -(-longest // AGE_BINS))
    bins = -(-longest // width)
    layers = len(readings[0].held)
    held, tokens = np.zeros((layers, bins)), np.zeros(bins)
    for r in readings:
        age = np.arange(len(r.tokens))[::-1] // width
        tokens += np.bincount(age, minlength=bins)
        for layer in range(layers):
            held[layer] += np.bincount(age, weights=r.held[layer].mean(axis=0), minlength=bins)
    return {
        "edges": (width * np.arange(bins + 1)).tolist(),
        "tokens": tokens.astype(int).tolist(),
        "layers": (held / tokens).tolist(),
        "mean": (held / tokens).mean(axis=0).tolist(),
    }


def _by_kind(readings: Sequence[Reading]) -> dict[str, Any]:
    """Held fraction by kind of token, over all layers and heads."""
    share = np.concatenate([r.held.mean(axis=(0, 1)) for r in readings])
    kinds = np.concatenate([np.array(r.kinds, dtype=object) for r in readings])
    judged = np.concatenate([np.arange(len(r.tokens)) < r.judged for r in readings])
    relevant = np.concatenate([r.relevant for r in readings])
    groups = {kind: kinds == kind for kind in KINDS if (kinds == kind).any()}
    groups["relevant to the answer"] = relevant
    return {
        kind: {
            "tokens": int(which.sum()),
            "kept": float(share[which].mean()),
            "judged_tokens": int((which & judged).sum()),
            "judged": float(share[which & judged].mean()) if (which & judged).any() else None,
        }
        for kind, which in groups.items()
        if which.any()
    }
