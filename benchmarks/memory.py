"""Memory of 1 to 32 sequences: peak of the process and bytes of the cache, stock full cache beside policies.

`make bench-memory`. Each measurement is a process of its own: a Llama of small width and many KV heads (so that the
cache is what counts) reads `--tokens` tokens of each sequence in pieces of 512, then writes 16. *Peak* is how much the
process grew beyond the loaded model, by the kernel's own count. The NAMM's share is forced, all of its scoring
computed, and its heads keep unequal numbers. Ends with one line; exit status 1 where the memory is not given back.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

SEQUENCES = (1, 2, 4, 8, 16, 32)
VARIANTS = ("stock full cache", "NAMM", "StreamingLLM")
SHARE = 0.25
PIECE, ANSWER = 512, 16


def measure(variant: str, sequences: int, tokens: int, sender) -> None:
    """In a process of its own: sends bytes of peak, keys and values, state, and of what is kept."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.cache_utils import DynamicCache

    from benchmarks.throughput import Forced
    from namm_core import MemoryCache, NammConfig
    from namm_core.policies import Streaming

    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, max_position_embeddings=tokens + ANSWER, **shape, **heads))
    model = model.eval()
    generator = torch.Generator().manual_seed(1)

    def cache(kind: str):
        if kind == VARIANTS[0]:
            return DynamicCache(config=model.config)
        if kind == "StreamingLLM":
            return MemoryCache(model, Streaming(round(SHARE * tokens)))
        memory = Forced(NammConfig(), torch.randn(4172, generator=generator) * 0.1)
        memory.share = SHARE
        return MemoryCache(model, memory)

    def read(past, ids) -> None:
        with torch.inference_mode():
            for piece in ids.split(PIECE, dim=1):
                model(piece, past_key_values=past, use_cache=True, logits_to_keep=1)
            for _ in range(ANSWER):
                model(ids[:, :1], past_key_values=past, use_cache=True)

    read(cache(variant), torch.zeros(1, 2 * PIECE, dtype=torch.long))  # libraries and their buffers are there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    past = cache(variant)
    read(past, torch.randint(0, 128, (sequences, tokens), generator=generator))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    if isinstance(past, MemoryCache):
        kept = int(past.kept_counts().sum()) * 2 * 64 * 4
        sender.send((peak, past.nbytes, past.state_nbytes, kept))
    else:
        held = sum(t.untyped_storage().nbytes() for layer in past.layers for t in (layer.keys, layer.values))
        sender.send((peak, held, 0, held))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of each sequence (4096)")
    parser.add_argument("--most", type=int, default=32, help="most sequences (32)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    spawn, rows = multiprocessing.get_context("spawn"), []
    for sequences in (n for n in SEQUENCES if n <= options.most):
        for variant in VARIANTS:
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=measure, args=(variant, sequences, options.tokens, sender))
            process.start()
            sender.close()
            try:
                found = receiver.recv()
            except EOFError:
                print(f"{variant} with {sequences} sequences ended without an answer (out of memory?)", file=sys.stderr)
                return 1
            process.join()
            rows.append(dict(zip(("peak", "kv", "state", "kept"), found, strict=True), variant=variant, n=sequences))
            print(f"  {variant}, {sequences} sequences: peak {found[0] / 2**20:,.0f} MiB", flush=True)
    table = Table(title=f"{options.tokens} tokens a sequence, kept {SHARE}; MiB")
    for head in ("sequences", *(f"{variant}\n{what}" for variant in VARIANTS for what in ("peak", "cache"))):
        table.add_column(head, justify="right")
    for n in sorted({row["n"] for row in rows}):
        cells = [next(r for r in rows if r["n"] == n and r["variant"] == v) for v in VARIANTS]
        table.add_row(str(n), *(f"{x / 2**20:,.1f}" for r in cells for x in (r["peak"], r["kv"] + r["state"])))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    spare = max(row["kv"] / row["kept"] for row in rows)
    last = {row["variant"]: row for row in rows}  # of the most sequences
    shares = ", ".join(f"{v} {last[v]['peak'] / last[VARIANTS[0]]['peak']:.2f} of stock's peak" for v in VARIANTS[1:])
    print(f"memory: stored / kept at most {spare:.3f}; at {rows[-1]['n']} sequences: {shares}")
    return int(spare > 1.10)


if __name__ == "__main__":
    sys.exit(main())
