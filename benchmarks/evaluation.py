"""How fast an evaluation of the main job is: one candidate and one sample a call, as `make evolve` asks for them.

    python -m benchmarks.evaluation [other checkout]

Process time of `namm_core.generation.answer` on models/recall-small at 1,544 tokens, interval 128, one thread, for the
stock full cache and for thetas that keep everything and about half; medians, in turn. Given another checkout of this
repository, for instance the commit before a change, a process of its own there is measured in the same turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig, StatisticsCollector
from namm_core.generation import answer

TOKENS, REPEATS = 1544, 15


def cases() -> dict:
    """Name -> a call that evaluates once and returns the kept share."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained("models/recall-small").eval()
    prompt = torch.randint(3, 779, (TOKENS,), generator=torch.Generator().manual_seed(0))
    reference = torch.tensor([5, 6, 7])
    config = NammConfig(update_interval=128)
    collector = StatisticsCollector(config)
    with torch.inference_mode(), MemoryCache(model, collector) as cache:
        model(prompt[None], past_key_values=cache)
    found = FeatureStatistics(collector.collected.mean, collector.collected.var, collector.collected.count)

    def run(theta: torch.Tensor | None) -> float:
        if theta is None:
            return answer(model, [prompt], [reference], None, 4)[0].kept[0]
        with MemoryCache(model, Namm(config, theta, found)) as cache:
            return statistics.mean(answer(model, [prompt], [reference], cache, 4)[0].kept)

    thetas = [0.1 * torch.randn(4172, generator=torch.Generator().manual_seed(seed)) for seed in range(24)]
    half = min(thetas, key=lambda theta: abs(run(theta) - 0.45))
    return {"full": lambda: run(None), "keeps all": lambda: run(torch.zeros(4172)), "keeps half": lambda: run(half)}


def serve() -> None:
    """Answers each name on standard input with seconds of process time and the kept share."""
    known = cases()
    for line in sys.stdin:
        start = time.process_time()
        kept = known[line.strip()]()
        print(json.dumps([time.process_time() - start, kept]), flush=True)


def main() -> None:
    folders = [Path.cwd(), *map(Path, sys.argv[1:])]
    source = Path(__file__).read_text()
    servers = []
    for folder in folders:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", source.replace('if __name__ == "__main__":\n    main()', "serve()")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        servers.append(subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes))
    seconds: dict[tuple, list[float]] = {}
    kept = {}
    for repeat in range(-1, REPEATS):
        for i, server in enumerate(servers):
            for name in ("full", "keeps all", "keeps half"):
                server.stdin.write(name + "\n")
                server.stdin.flush()
                spent, kept[i, name] = json.loads(server.stdout.readline())
                if repeat >= 0:
                    seconds.setdefault((i, name), []).append(spent)
    for (i, name), spent in seconds.items():
        median = statistics.median(spent)
        print(
            f"{'this' if i == 0 else 'other'} checkout, {name}: {1000 * median:.0f} ms, kept {kept[i, name]:.3f}, "
            f"of full {statistics.median(seconds[i, 'full']) / median:.2f}, "
            f"speed of the other {statistics.median(seconds[len(folders) - 1, name]) / median:.2f}"
        )
    for server in servers:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    main()
