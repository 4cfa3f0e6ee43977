"""How fast evaluations are, as many candidates to a call as configs/recall.yaml asks for (`workers`).

    python -m benchmarks.evaluation [other checkout]

Process time of `workers.evaluator` on configs/recall.yaml's model and training samples, one thread, for the full
cache, for candidates around the shipped memory (as far from it as the search draws them) and for a theta that keeps
everything; medians over rounds. Given another checkout of this repository, for instance the commit before a change, a
process of its own there does the same in the same rounds, and what both found is compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from namm_core import Namm, NammConfig
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef, Unit

KINDS = ("resident", "passkey", "topic", "latest")
"""Of the samples, one a kind; each is shown to as many candidates."""
CANDIDATES, ROUNDS, SIGMA = 32, 4, 0.065
EACH = CANDIDATES // len(KINDS)


def serve(memory: str) -> None:
    """Evaluates each case that is named on standard input; writes seconds of process time and the results."""
    tasks = {"source": "recall", "tokens": 1544, "kinds": list(KINDS)}
    model = ModelConfig("models/recall-small", ntk_alpha=128.0)
    evaluator = Evaluator(EvaluatorConfig(model, tasks, NammConfig(update_interval=128)))
    namm = Namm.from_pretrained(memory)
    found = namm.statistics.mean.numpy(), namm.statistics.var.numpy(), namm.statistics.count
    theta, random = namm.theta.numpy(), np.random.default_rng(0)
    near = [theta + SIGMA * random.standard_normal(len(theta)).astype(np.float32) for _ in range(CANDIDATES)]
    cases = {
        "full": [PolicySpec("full")] * CANDIDATES,
        "candidates": [PolicySpec("namm", candidate, found) for candidate in near],
        "keeps all": [PolicySpec("namm", np.zeros_like(theta), found)] * CANDIDATES,
    }
    together = yaml.safe_load(Path("configs/recall.yaml").read_text()).get("workers", {}).get("candidates_per_call", 1)
    for line in sys.stdin:
        policies, results, spent = cases[line.strip()], [], 0.0
        step = 1 if policies[0].name == "full" else together
        for i in range(0, CANDIDATES, step):
            sample = SampleRef(KINDS[i // EACH], "train", i // EACH)
            start = time.process_time()
            found_here = evaluator._evaluate(Unit(tuple(policies[i : i + step]), (sample,)))  # no scores from a cache
            spent += time.process_time() - start
            results += [[result.score, result.logprob, result.kept] for [result] in found_here]
        print(json.dumps([spent / CANDIDATES, results]), flush=True)


def main() -> None:
    folders = [Path.cwd(), *map(Path, sys.argv[1:])]
    source = Path(__file__).read_text().replace('if __name__ == "__main__":\n    main()', "serve(sys.argv[1])")
    servers = []
    for folder in folders:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", source, str(Path("models/recall-namm").absolute())]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        servers.append(subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes))
    seconds: dict[tuple, list[float]] = {}
    found = {}
    for turn in range(-1, ROUNDS):
        for name in ("full", "candidates", "keeps all"):
            for i, server in enumerate(servers):
                server.stdin.write(name + "\n")
                server.stdin.flush()
                spent, results = json.loads(server.stdout.readline())
                found[i, name] = np.array(results)
                if turn >= 0:
                    seconds.setdefault((i, name), []).append(spent)
    for (i, name), spent in sorted(seconds.items()):
        median, results = statistics.median(spent), found[i, name]
        of_full = statistics.median(seconds[i, "full"]) / median
        which = "this checkout" if i == 0 else "other checkout"
        print(f"{which}, {name}: {1000 * median:.0f} ms, kept {results[:, 2].mean():.3f}, of full {of_full:.2f}")
    for name in ("full", "candidates", "keeps all") if len(folders) > 1 else ():
        ratios = [b / a for a, b in zip(seconds[0, name], seconds[1, name], strict=True)]
        apart = np.abs(found[0, name] - found[1, name]).max(axis=0)
        print(
            f"{name}: {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"results differ by at most {apart[0]:.2g} (score), {apart[1]:.2g} (log-probability), {apart[2]:.2g} (kept)"
        )
    for server in servers:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    main()
