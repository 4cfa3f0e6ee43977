"""What a memory costs on a real language model: tokens per CPU-second beside the full cache with fused attention.

    python -m benchmarks.real_model            # SmolLM2-135M-Instruct; first: namm models fetch smollm2

One thread; all variants read the same prompt in one process, in turn, `--repeats` times after a warm-up; figures are
medians of process time. The memory is that of `configs/smollm2.yaml`, with random weights, at 0.4 of the cache; beside
it stands the paper's (25 features, backward attention), whose threshold is forced to the same share. Texts are random
tokens: what is kept does not depend on them. The last line holds the ratios of 8 candidates to the full cache, and the
exit status says whether the bounds are met. Knows nothing of tasks or search.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from benchmarks.throughput import Forced
from namm_core import MemoryCache, Namm, NammConfig
from namm_core.answering import prefill
from namm_core.policies.full import Full
from orchestrator import spec
from workers import models
from workers.config import ModelConfig

CANDIDATES, KEPT, CONFIG = 8, 0.4, "configs/smollm2.yaml"
FULL, OURS = "full, fused attention", f"configs/smollm2.yaml, {CANDIDATES} candidates"
BOUNDS = {2048: 0.95, 4096: 1.1}


def variants(model: PreTrainedModel, prompt: torch.Tensor) -> dict[str, tuple[int, Callable[[], float]]]:
    """Rows and a call that reads the prompt (tokens,), for each variant; the call returns the kept fraction."""
    ours, papers = spec.read(CONFIG).memory, NammConfig(update_interval=128)

    def full() -> float:
        model.set_attn_implementation("sdpa")
        model(prompt[None], past_key_values=DynamicCache(config=model.config), logits_to_keep=1)
        return 1.0

    def memory(policy: Namm | Full) -> float:
        with MemoryCache(model, policy) as cache:
            prefill(model, [prompt] * policy.rows, cache)
            return float(cache.kept_counts().double().mean()) / len(prompt)

    def budgeted(rows: int) -> Namm:
        return Namm(ours, _random(rows, ours), budget=KEPT)

    def forced(rows: int) -> Forced:
        policy = Forced(papers, 0.1 * _random(rows, papers))
        policy.share = KEPT
        return policy

    return {
        FULL: (1, full),
        "keep everything": (1, lambda: memory(Full())),
        "configs/smollm2.yaml, 1 candidate": (1, lambda: memory(budgeted(1))),
        OURS: (CANDIDATES, lambda: memory(budgeted(CANDIDATES))),
        "the paper's NAMM, 1 candidate": (1, lambda: memory(forced(1))),
        f"the paper's NAMM, {CANDIDATES} candidates": (CANDIDATES, lambda: memory(forced(CANDIDATES))),
    }


def _random(rows: int, config: NammConfig) -> torch.Tensor:
    return torch.randn(rows, Namm(config).num_parameters, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def measured(model: PreTrainedModel, tokens: int, repeats: int, only: str) -> dict[str, tuple[float, float]]:
    """Tokens per CPU-second and the kept fraction, by variant."""
    prompt = torch.randint(5, model.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(1))
    chosen = {name: v for name, v in variants(model, prompt).items() if name == FULL or only in name}
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    kept = {name: run() for name, (_, run) in chosen.items()}  # warm-up
    for _ in range(repeats):
        for name, (_, run) in chosen.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
            print(f"  {tokens} {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: (chosen[name][0] * tokens / statistics.median(seconds[name]), kept[name]) for name in chosen}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--if-fetched", action="store_true", help="no error where the model was not fetched")
    parser.add_argument("--only", default="", help="variants with this in their name, and the full cache")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        model, _ = models.load(ModelConfig(path="smollm2", dtype=options.dtype))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 0 if options.if_fetched else 2
    print("| tokens | variant | kept | tokens / CPU-s | of the full cache |\n|---:|---|---:|---:|---:|")
    ratios = {}
    for tokens in options.tokens:
        rates = measured(model, tokens, options.repeats, options.only)
        for name, (rate, kept) in rates.items():
            print(f"| {tokens} | {name} | {kept:.2f} | {rate:,.0f} | {rate / rates[FULL][0]:.2f} |", flush=True)
        if OURS in rates:
            ratios[tokens] = rates[OURS][0] / rates[FULL][0]
    print(" ".join(f"ratio_real_{tokens}={value:.2f}" for tokens, value in ratios.items()))
    return int(any(value < BOUNDS.get(tokens, 0.0) for tokens, value in ratios.items()))


if __name__ == "__main__":
    sys.exit(main())
