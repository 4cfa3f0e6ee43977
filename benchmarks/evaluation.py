"""How fast the main job's evaluations are: one candidate and one sample a call, as `make evolve` asks for them.

    python -m benchmarks.evaluation [other checkout]

Process time of `workers.evaluator` on configs/recall.yaml's model and training samples, one thread, for the full cache,
for candidates around the shipped memory (as far from it as the search draws them) and for a theta that keeps everything;
medians over rounds. Given another checkout of this repository, for instance the commit before a change, a process of its
own there does the same in the same rounds, and what both found is compared.
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

from namm_core import Namm, NammConfig
from workers.config import EvaluatorConfig, ModelConfig
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, SampleRef, Unit

KINDS = ("resident", "passkey", "topic", "latest")
SAMPLES, ROUNDS, SIGMA = 16, 5, 0.065


def serve(memory: str) -> None:
    """Evaluates each case that is named on standard input; writes seconds of process time and the results."""
    tasks = {"source": "recall", "tokens": 1544, "kinds": list(KINDS)}
    model = ModelConfig("models/recall-small", ntk_alpha=128.0)
    evaluator = Evaluator(EvaluatorConfig(model, tasks, NammConfig(update_interval=128)))
    namm = Namm.from_pretrained(memory)
    found = namm.statistics.mean.numpy(), namm.statistics.var.numpy(), namm.statistics.count
    theta, random = namm.theta.numpy(), np.random.default_rng(0)
    near = [theta + SIGMA * random.standard_normal(len(theta)).astype(np.float32) for _ in range(SAMPLES)]
    cases = {
        "full": [PolicySpec("full")] * SAMPLES,
        "candidates": [PolicySpec("namm", candidate, found) for candidate in near],
        "keeps all": [PolicySpec("namm", np.zeros_like(theta), found)] * SAMPLES,
    }
    samples = [SampleRef(KINDS[i % len(KINDS)], "train", i) for i in range(SAMPLES)]
    for line in sys.stdin:
        results, spent = [], []
        for policy, sample in zip(cases[line.strip()], samples, strict=True):
            start = time.process_time()
            [[result]] = evaluator._evaluate(Unit((policy,), (sample,)))  # not from a cache of scores
            spent.append(time.process_time() - start)
            results.append([result.score, result.logprob, result.kept])
        print(json.dumps([statistics.mean(spent), results]), flush=True)


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
        print(
            f"{'this' if i == 0 else 'other'} checkout, {name}: {1000 * median:.0f} ms, kept {results[:, 2].mean():.3f}, "
            f"of full {statistics.median(seconds[i, 'full']) / median:.2f}"
        )
    for name in ("full", "candidates", "keeps all") if len(folders) > 1 else ():
        ratios = [b / a for a, b in zip(seconds[0, name], seconds[1, name], strict=True)]
        apart = np.abs(found[0, name] - found[1, name]).max(axis=0)
        print(
            f"{name}: {statistics.median(ratios):.2f} times as fast as the other ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"results differ by at most {apart[0]:.2g} (score), {apart[1]:.2g} (log-probability), {apart[2]:.2g} (kept)"
        )
    for server in servers:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    main()
