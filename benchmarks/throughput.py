"""What a memory costs on a CPU: tokens per CPU-second beside the full cache, peak memory, and where the time goes.

A Llama of 2.1 million random parameters reads prompts; nothing is generated. All variants run in one process, in turn,
`--repeats` times; figures are medians of process time, in which what other processes do counts little. What is kept is
forced to a share of the tokens fed by each head's own scores, all of which are really computed; heads keep unequal
numbers. The last line is the ratio of the NAMM with 8 candidates to the better full cache with fused attention, and
the exit status says whether the bounds are met. Knows nothing of tasks or search.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.benchmark import Timer
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig, StatisticsCollector
from namm_core.answering import prefill
from namm_core.layer.memory_layer import MemoryLayer
from namm_core.policies.full import Full

CANDIDATES = 8
SIZES = ((2048, 0.4), (8192, 0.4), (8192, 0.12))
BOUNDS = {"ratio_2048": 0.6, "ratio_8192_kept40": 0.6, "ratio_8192_kept12": 1.0}
SECTIONS = ("linear layers", "attention", "spectrogram", "scorer", "compaction", "other")
FUSED = ("full, fused, batch 1", "full, fused, batch 8")
EAGER = "full, eager"
NAMM = "NAMM, 8 candidates"


class Forced(Namm):
    """Keeps a share of the tokens fed, whatever the scores' sign: each head its highest, heads of unequal length."""

    share = 1.0

    def observe(self, state, attention, fed, counts):
        with section("spectrogram"):
            return super().observe(state, attention, fed, counts)

    def watch(self, *args):
        return TimedWatch(super().watch(*args))

    def scores(self, state, view):
        with record_function("section: scorer"):
            return super().scores(state, view)

    def select(self, scores, view):
        rows, heads, keys = scores.shape
        spread = torch.linspace(0.8, 1.2, heads) if heads > 1 else torch.ones(1)
        budget = (self.share * (view.newest[:, None] + 1) * spread).round().long().clamp(min=1)
        order = scores.masked_fill(view.positions < 0, -torch.inf).argsort(-1, descending=True)
        keep = torch.zeros_like(view.positions, dtype=torch.bool)
        keep.scatter_(-1, order, (torch.arange(keys) < budget[..., None]))
        return keep & (view.positions >= 0)


class TimedWatch:
    """Names what watching costs, for the profile."""

    def __init__(self, watch):
        self._watch = watch

    def __getattr__(self, name):
        def timed(*args):
            with section("spectrogram"):
                return getattr(self._watch, name)(*args)

        return timed


class TimedLayer(MemoryLayer):
    """Names what a memory costs beside attention, for the profile."""

    def append(self, *args):
        with record_function("section: compaction"):
            return super().append(*args)

    def finish(self, *args):
        with record_function("section: compaction"):
            return super().finish(*args)

    def begin_read(self, *args):
        with record_function("section: compaction"):
            return super().begin_read(*args)

    def end_read(self):
        with record_function("section: compaction"):
            return super().end_read()


@dataclass
class Figure:
    """What one variant gave at one prompt length and number of threads."""

    variant: str
    tokens: int
    kept: float
    threads: int
    rows: int
    forced: float
    """The share of the NAMMs beside it."""
    seconds: list[float] = field(default_factory=list)
    """Process time of each repetition."""
    peak: float | None = None
    """MiB above what the process held before; None where the system does not tell."""
    share: dict[str, float] = field(default_factory=dict)
    """Of the profiled time, by section."""

    @property
    def rate(self) -> float:
        """Tokens (rows x prompt) per CPU-second."""
        return self.rows * self.tokens / statistics.median(self.seconds)


def llama() -> LlamaForCausalLM:
    """2.1 million parameters, random: 4 layers of width 256, 8 heads on 4 KV heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def collected(model: LlamaForCausalLM, ids: torch.Tensor) -> FeatureStatistics:
    """Statistics of the model's own features, over one prompt."""
    collector = StatisticsCollector(NammConfig())
    with MemoryCache(model, collector) as cache:
        model(ids, past_key_values=cache, logits_to_keep=1)
    return collector.collected


class Bench:
    """One model, its prompts and all ways of reading them."""

    def __init__(self, longest: int) -> None:
        self.model = llama()
        self.prompt = torch.randint(0, 512, (longest,), generator=torch.Generator().manual_seed(1))
        self.theta = 0.1 * torch.randn(CANDIDATES, Namm().num_parameters, generator=torch.Generator().manual_seed(2))
        self.statistics = collected(self.model, self.prompt[None, :2048])

    def variants(self, tokens: int, share: float) -> dict[str, tuple[int, Callable[[], float]]]:
        """Rows and a call that reads them, for each variant; the call returns the kept fraction."""
        return {
            FUSED[0]: (1, lambda: self.stock("sdpa", tokens, 1)),
            FUSED[1]: (CANDIDATES, lambda: self.stock("sdpa", tokens, CANDIDATES)),
            EAGER: (1, lambda: self.stock("eager", tokens, 1)),
            "keep everything": (1, lambda: self.memory(Full(), tokens)),
            "NAMM, 1 candidate": (1, lambda: self.memory(self.namm(1, share), tokens)),
            NAMM: (CANDIDATES, lambda: self.memory(self.namm(CANDIDATES, share), tokens)),
        }

    def namm(self, candidates: int, share: float) -> Forced:
        policy = Forced(NammConfig(), self.theta[:candidates], self.statistics)
        policy.share = share
        return policy

    def stock(self, implementation: str, tokens: int, rows: int) -> float:
        self.model.set_attn_implementation(implementation)
        ids = self.prompt[None, :tokens].expand(rows, tokens)
        with section("whole"):
            self.model(ids, past_key_values=DynamicCache(config=self.model.config), logits_to_keep=1)
        return 1.0

    def memory(self, policy, tokens: int) -> float:
        with MemoryCache(self.model, policy) as cache:
            cache.layers = [TimedLayer(policy, i) for i in range(len(cache.layers))]
            with section("whole"):
                prefill(self.model, [self.prompt[:tokens]] * policy.rows, cache)
            return float(cache.kept_counts().double().mean()) / tokens


@contextmanager
def section(name: str) -> Iterator[None]:
    with record_function(f"section: {name}"):
        yield


def peak_memory(run: Callable[[], object]) -> float | None:
    """MiB of resident memory that `run` needs beyond what is held before; None where /proc does not tell."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / 1024
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def sections(model: LlamaForCausalLM, run: Callable[[], object]) -> dict[str, float]:
    """Shares of the time by section; a section inside another one is not counted twice."""
    hooks = []
    for module in model.modules():
        name = "linear layers" if isinstance(module, torch.nn.Linear) else None
        name = "attention" if type(module).__name__.endswith("Attention") else name
        if name is not None:
            ranges: list[record_function] = []

            def enter(_, args, kwargs=None, name=name, ranges=ranges):
                ranges.append(record_function(f"section: {name}"))
                ranges[-1].__enter__()

            def leave(*_, ranges=ranges):
                ranges.pop().__exit__(None, None, None)

            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    spent = dict.fromkeys(SECTIONS, 0.0)
    for event in seen.events():
        if event.name.startswith("section: "):
            name = event.name.removeprefix("section: ")
            spent["other" if name == "whole" else name] += event.cpu_time_total
            above = event.cpu_parent
            while above is not None and not above.name.startswith("section: "):
                above = above.cpu_parent
            if above is not None:
                outer = above.name.removeprefix("section: ")
                spent["other" if outer == "whole" else outer] -= event.cpu_time_total
    total = sum(spent.values())
    return {name: time / total for name, time in spent.items()}


@torch.inference_mode()
def measure(bench: Bench, size: tuple[int, float], threads: int, repeats: int, only: str, quick: bool) -> list[Figure]:
    """All variants in turn, `repeats` times after a warm-up in which memory and profile are taken."""
    tokens, share = size
    torch.set_num_threads(threads)
    variants = {name: v for name, v in bench.variants(tokens, share).items() if only in name or name in FUSED}
    if threads > 1 or size == SIZES[2]:
        variants.pop(EAGER, None)  # measured once a length
    if size == SIZES[2]:
        variants.pop(FUSED[1], None)  # so is this one
    figures = {}
    for name, (rows, run) in variants.items():
        figure = figures[name] = Figure(name, tokens, 1.0, threads, rows, share)

        def once(figure=figure, run=run):
            start = time.process_time()
            figure.kept = run()
            figure.seconds = [time.process_time() - start]

        figure.peak = peak_memory(once)
        if threads == 1 and rows == 1 and name != EAGER and not quick:
            figure.share = sections(bench.model, run)
    for name, figure in figures.items():
        if name != EAGER and repeats:  # slow, and in no ratio: its first run counts
            figure.seconds = []
    for _ in range(repeats):
        for name, (_, run) in variants.items():
            if name != EAGER:
                timer = Timer("run()", globals={"run": run}, timer=time.process_time, num_threads=threads)
                figures[name].seconds += timer.timeit(1).raw_times
                print(f"  {tokens} {share} {name}: {figures[name].seconds[-1]:.2f} s", file=sys.stderr, flush=True)
    return list(figures.values())


def ratio(found: list[Figure], figures: list[Figure]) -> float:
    """NAMM with 8 candidates, of the better fused full cache; what is measured once a length is among all `figures`."""
    length = found[0].tokens, found[0].threads
    rates = {f.variant: f.rate for f in [*figures, *found] if (f.tokens, f.threads) == length}
    return rates[NAMM] / max(rates[name] for name in FUSED if name in rates)


def processor() -> str:
    """The machine's processor, by its kind."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(figures: list[Figure]) -> list[str]:
    """Markdown rows, one per variant."""
    lines = [
        "| tokens | threads | variant | kept | tokens / CPU-s | of fused | peak MiB | " + " | ".join(SECTIONS) + " |",
        "|" + "---:|" * 2 + "---|" + "---:|" * (4 + len(SECTIONS)),
    ]
    best: dict[tuple, float] = {}
    for f in figures:
        if f.variant in FUSED:
            best[f.tokens, f.forced, f.threads] = max(best.get((f.tokens, f.forced, f.threads), 0.0), f.rate)
    for f in figures:
        shares = [f"{100 * f.share[name]:.0f} %" if f.share else "" for name in SECTIONS]
        peak = "" if f.peak is None else f"{f.peak:.0f}"
        cells = [f.tokens, f.threads, f.variant, f"{f.kept:.2f}", f"{f.rate:,.0f}"]
        cells += [f"{f.rate / best[f.tokens, f.forced, f.threads]:.2f}", peak, *shares]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=2, help="after a first run; with the second thread count none")
    parser.add_argument(
        "--quick", action="store_true", help="one thread, three repetitions, no profile, nothing written"
    )
    parser.add_argument("--size", type=int, nargs="+", default=[0, 1, 2], help=f"which of {SIZES}")
    parser.add_argument("--only", default="", help="variants with this in their name, and those with fused attention")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of benchmarks.md and benchmarks.json")
    options = parser.parse_args()
    if options.quick:
        options.threads, options.repeats = [1], 3
    bench, figures, ratios = Bench(max(SIZES[i][0] for i in options.size)), [], {}
    for threads in options.threads:
        for i in options.size:
            tokens, share = SIZES[i]
            found = measure(
                bench,
                SIZES[i],
                threads,
                options.repeats if threads == options.threads[0] else 0,
                options.only,
                options.quick,
            )
            figures += found
            if threads == options.threads[0]:
                name = f"ratio_{tokens}" + (f"_kept{round(100 * share)}" if tokens > 2048 else "")
                ratios[name] = ratio(found, figures)
    machine = {
        "processor": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": "python -m benchmarks.throughput " + " ".join(sys.argv[1:]),
    }
    print("\n".join(table(figures)))
    if not options.quick:
        write(options.out, machine, figures, ratios)
    print(" ".join(f"{name}={value:.2f}" for name, value in ratios.items()))
    return int(any(value < BOUNDS[name] for name, value in ratios.items()))


def write(folder: Path, machine: dict[str, str], figures: list[Figure], ratios: dict[str, float]) -> None:
    """`benchmarks.json` with everything, `benchmarks.md` with the table."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "ratios": ratios, "figures": [asdict(f) | {"rate": f.rate} for f in figures]}
    (folder / "benchmarks.json").write_text(json.dumps(record, indent=1) + "\n")
    text = [
        "# What the memory costs on a CPU",
        "",
        "How many tokens a second a model reads on a CPU with the memory and with the full cache, how much memory",
        "that takes, and where the time goes. Written by `make bench`; do not edit. A Llama of 2.1 million random",
        "parameters (4 layers of width 256, 8 heads on 4 KV heads) reads prompts in float32. Rates are rows x prompt",
        "tokens per CPU-second: medians of process time, with all variants taking turns in one process; a single run",
        "for eager attention, and for everything with the second thread count. *Of fused* is the rate relative to the",
        "faster of the two full caches with fused attention in the same run. The share that the NAMM keeps is forced,",
        "with all of its scoring still computed. The last six columns are shares of a profiled run; *attention* is",
        "whatever is neither a linear layer nor one of the memory's parts.",
        "",
        "; ".join(f"{name}: {value}" for name, value in machine.items()),
        "",
        *table(figures),
        "",
        "`" + " ".join(f"{name}={value:.2f}" for name, value in ratios.items()) + "`",
    ]
    (folder / "benchmarks.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
