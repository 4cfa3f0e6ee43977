"""Hand-made rules as points of a memory's space: the theta that ranks tokens as a policy does.

Each feature says which policies rank by it (`Feature.rules`); where all other numbers are 0, every scorer is linear in
the features (`Scorer.readout`). Imports no torch.
"""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING, cast

import numpy as np

from namm_core import plugins
from namm_core.config import FEATURES, NammConfig
from namm_core.scoring import scorer

if TYPE_CHECKING:
    from namm_core.protocols import Feature


def rules(config: NammConfig) -> list[str]:
    """Names of the policies that are a point of this memory's space, in alphabetical order."""
    return sorted(rule for name in config.features for rule in _feature(name).rules)


def start(config: NammConfig, rule: str) -> np.ndarray:
    """(N,) float64, the theta that ranks as the policy `rule`. Raises ValueError, one line, where there is none."""
    theta = np.zeros(scorer.num_parameters(config))
    at = _readout(config).start
    for name in config.features:
        feature = _feature(name)
        if rule in feature.rules:
            theta[at] = feature.rules[rule]
            return theta
        at += feature.width(config)
    raise ValueError(_unknown(config, rule))


def linear_part(config: NammConfig) -> np.ndarray:
    """(N,) bool, the numbers in which the score is linear (the features' weights, and the score's bias), and those that
    share a budget among layers or heads."""
    part = np.zeros(scorer.num_parameters(config), bool)
    part[: config.depths * max(config.heads, 1)] = part[_readout(config)] = part[-1] = True
    return part


def _feature(name: str) -> Feature:
    return cast("Feature", plugins.find_class(FEATURES, name, "feature")())


def _readout(config: NammConfig) -> slice:
    """The features' weights within theta."""
    at, network = 0, scorer.find(config.scorer)
    for name, shape in scorer.layout(config).items():
        size = math.prod(shape)
        if name == network.readout:
            return slice(at, at + size)
        at += size
    raise ValueError(f"scorer {config.scorer} has no part {network.readout!r}, which its `readout` names")


def _unknown(config: NammConfig, rule: str) -> str:
    """Why there is no such rule."""
    known = rules(config)
    for name in plugins.modules(FEATURES):
        if rule in _feature(name).rules:
            return f"rule {rule} needs the feature {name}: add it to memory.features ({', '.join(config.features)})"
    if not known:
        return f"no rule is a point of this memory's space: no policy ranks by {', '.join(config.features)}"
    near = difflib.get_close_matches(str(rule), known, n=1, cutoff=0.0)[0]
    return f"unknown rule {rule!r}; did you mean {near!r}? Known: {', '.join(known)}"
