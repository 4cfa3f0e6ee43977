"""Write a search: one file with one class, asked for candidates and told how they did.

The search is `plugins/searches/mean_of_best.py` beside this program. Here it and the searches that are built in
maximise minus the squared distance to a hidden vector of 200 numbers, from the same start with the same population.
Prints what is left of the distance as generations pass, then asks one of them again, told the same fitness, for the
same bits: that is all a resumed job needs. Takes about 2 seconds on one core.

    python examples/write_a_search.py

In a job the same search is `plugins: [examples/plugins]` and `search: {algorithm: mean_of_best, decay: 0.99}`.
"""

from __future__ import annotations

import numpy as np

from orchestrator import plugins
from orchestrator.protocols import Search
from orchestrator.search import lookup

SIZE, GENERATIONS, EVERY = 200, 240, 40
HIDDEN = np.random.RandomState(1).randn(SIZE)


def fitness(candidates: np.ndarray) -> np.ndarray:
    """(population,): minus the squared distance of each candidate (population, N) to the hidden vector."""
    return -((candidates - HIDDEN) ** 2).sum(axis=1)


def searched(search: Search) -> list[float]:
    """Distance of the mean to the hidden vector, relative to the start's, every so many generations."""
    left = []
    for generation in range(1, GENERATIONS + 1):
        search.tell(fitness(search.ask()))
        if generation % EVERY == 0:
            left.append(float(np.linalg.norm(search.mean - HIDDEN) / np.linalg.norm(HIDDEN)))
    return left


def main() -> None:
    """Prints one row for each search."""
    plugins.add(["examples/plugins"])
    options = {
        "cma_es": {"population": 32, "sigma0": 0.3},
        "openai_es": {"population": 32, "sigma0": 0.3, "learning_rate": 0.03},
        "mean_of_best": {"population": 32, "sigma0": 0.3, "decay": 0.99},
    }
    print(f"{'generation':<16}" + "".join(f"{EVERY * (i + 1):>8}" for i in range(GENERATIONS // EVERY)))
    found = {}
    for name in options:
        config = lookup.read({"algorithm": name, **options[name]}, "search")
        search = lookup.started(config, np.zeros(SIZE))
        print(f"{name:<16}" + "".join(f"{left:>8.3f}" for left in searched(search)))
        found[name] = search.mean

    config = lookup.read({"algorithm": "mean_of_best", **options["mean_of_best"]}, "search")
    again = lookup.started(config, np.zeros(SIZE))
    searched(again)
    same = again.mean.tobytes() == found["mean_of_best"].tobytes()
    print(f"\nmean_of_best, told the same once more: {'the same bits' if same else 'OTHER BITS'}")


if __name__ == "__main__":
    main()
