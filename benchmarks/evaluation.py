"""How fast an evaluation of the main job is: one candidate and one sample a call, as `make evolve` asks for them.

    python -m benchmarks.evaluation [other checkout]

Process time of `namm_core.generation.answer` on models/recall-small at 1,544 tokens, interval 128, one thread, for the
stock full cache and for thetas that keep everything and about half; of it, what comes behind the prompt: a reference of
three tokens and an answer of four, which is another one or, where it says right, begins with them; medians, in turn.
Given another checkout of this repository, for instance the commit before a change, a process of its own there is
measured in the same turns.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig, StatisticsCollector, generation

TOKENS, REPEATS = 1544, 15
NAMES = [name + right for name in ("full", "keeps all", "keeps half") for right in ("", ", right")]


def cases() -> dict[str, Callable[[], generation.Answer]]:
    """Name -> a call that evaluates once."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained("models/recall-small").eval()
    prompt = torch.randint(3, 779, (TOKENS,), generator=torch.Generator().manual_seed(0))
    other = torch.tensor([5, 6, 7])
    config = NammConfig(update_interval=128)
    collector = StatisticsCollector(config)
    with torch.inference_mode(), MemoryCache(model, collector) as cache:
        model(prompt[None], past_key_values=cache)
    found = FeatureStatistics(collector.collected.mean, collector.collected.var, collector.collected.count)

    def run(theta: Tensor | None, reference: Tensor) -> generation.Answer:
        if theta is None:
            return generation.answer(model, [prompt], [reference], None, 4)[0]
        with MemoryCache(model, Namm(config, theta, found)) as cache:
            return generation.answer(model, [prompt], [reference], cache, 4)[0]

    thetas = [0.1 * torch.randn(4172, generator=torch.Generator().manual_seed(seed)) for seed in range(24)]
    half = min(thetas, key=lambda theta: abs(statistics.mean(run(theta, other).kept) - 0.45))
    made = {}
    for name, theta in {"full": None, "keeps all": torch.zeros(4172), "keeps half": half}.items():
        right = torch.tensor(run(theta, other).tokens[:3])
        assert right[0] != other[0]
        made[name] = partial(run, theta, other)
        made[f"{name}, right"] = partial(run, theta, right)
    return made


def serve() -> None:
    """Answers each name on standard input with seconds of process time, those behind the prompt, and the kept share."""
    known, prefill, read = cases(), generation.prefill, []

    def noted(*arguments):
        found = prefill(*arguments)
        read.append(time.process_time())
        return found

    generation.prefill = noted
    for line in sys.stdin:
        start = time.process_time()
        found = known[line.strip()]()
        end = time.process_time()
        print(json.dumps([end - start, end - read[-1], statistics.mean(found.kept)]), flush=True)


def main() -> None:
    folders = [Path.cwd(), *map(Path, sys.argv[1:])]
    source = Path(__file__).read_text()
    servers = []
    for folder in folders:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", source.replace('if __name__ == "__main__":\n    main()', "serve()")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        servers.append(subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes))
    seconds: dict[tuple, list[list[float]]] = {}
    for repeat in range(-1, REPEATS):
        for i, server in enumerate(servers):
            for name in NAMES:
                server.stdin.write(name + "\n")
                server.stdin.flush()
                spent = json.loads(server.stdout.readline())
                if repeat >= 0:
                    seconds.setdefault((i, name), []).append(spent)
    medians = {key: [statistics.median(column) for column in zip(*rows, strict=True)] for key, rows in seconds.items()}
    for (i, name), (whole, behind, kept) in medians.items():
        other = medians[len(folders) - 1, name]
        print(
            f"{'this' if i == 0 else 'other'} checkout, {name}: {1000 * whole:.0f} ms, kept {kept:.3f}, "
            f"of full {medians[i, 'full'][0] / whole:.2f}, speed of the other {other[0] / whole:.2f}; "
            f"behind the prompt {1000 * behind:.1f} ms, {other[1] / behind:.2f}"
        )
    for server in servers:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    main()
