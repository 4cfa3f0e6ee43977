"""Every search that there is, in every kind that its options make of it: the matrix of test_searches.py.

A search whose file is added to `orchestrator.search.algorithms` is in it by itself, with its own defaults.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.protocols import Search
from orchestrator.search import lookup
from orchestrator.search.config import SearchConfig

KINDS: dict[str, list[dict[str, Any]]] = {
    "cma_es": [
        {"variant": variant, "mirrored": mirrored}
        for variant in ("diagonal", "isotropic", "full")
        for mirrored in (False, True)
    ],
    "openai_es": [{}, {"sigma_decay": 0.99, "learning_rate": 0.03}],
}
"""Options that make another search of an algorithm; one without an entry is tried with its defaults."""
EVERY = [(name, options) for name in lookup.names() for options in KINDS.get(name, [{}])]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in EVERY]


def config(kind: tuple[str, dict[str, Any]], **settings: Any) -> SearchConfig:
    """The configuration of one of `EVERY`."""
    name, options = kind
    return lookup.read({"algorithm": name, **options, **settings}, "search")


def started(kind: tuple[str, dict[str, Any]], start: np.ndarray, **settings: Any) -> Search:
    """A search of one of `EVERY`."""
    return lookup.started(config(kind, **settings), start)


def sphere(candidates: np.ndarray) -> np.ndarray:
    """Best, 0, where all numbers are 0.3."""
    return -((candidates.astype(np.float64) - 0.3) ** 2).sum(axis=1)


def digest(search: Search, generations: int) -> str:
    """Names all candidates of some generations on the sphere, some of their fitness missing."""
    import hashlib

    seen = hashlib.sha256()
    for generation in range(generations):
        candidates = search.ask()
        seen.update(candidates.tobytes())
        fitness = sphere(candidates)
        fitness[: generation % 3] = np.nan
        search.tell(fitness)
    return seen.hexdigest()
