"""The sizing formulas against a real small model, and the operations page against formulas and code."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import sizing
from namm_core import MemoryCache, Namm, NammConfig, loops
from orchestrator.storage.journal import Journal, policy_key
from workers.array_cache import pack
from workers.tasks.prompt import Prompt
from workers.unit import PolicySpec, SampleRef, SampleResult

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
MODEL = sizing.Model(layers=2, hidden=64, heads=8, kv_heads=2, head=32, mlp=256, vocabulary=100)
CONFIG = NammConfig(update_interval=256)


class Traffic(TorchDispatchMode):
    """Counts bytes that operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        if not (func.is_view or name in ("_unsafe_view", "empty", "empty_strided", "new_empty", "detach", "alias")):
            given = {key: value for key, value in (kwargs or {}).items() if key != "out"}  # written, not read
            read = args[1] if name == "copy_" else (args, given)
            moved = [t for t in tree_leaves((read, out)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in moved)
        return out


class Watched(Namm):
    """Notes (new tokens, columns) of each block that each layer shows it."""

    def watch(self, state, positions, fed, new, groups):
        self.blocks.append((new, positions.shape[-1]))
        return super().watch(state, positions, fed, new, groups)


class RealBlocks(sizing.Job):
    """What was held is as it was, instead of the same fraction at each update."""

    def blocks(self):
        return iter(BLOCKS[self])


BLOCKS: dict[RealBlocks, list[tuple[int, float]]] = {}


class Prefill:
    """A prompt through a small random Llama with a memory that keeps all, or about a third (of each head its own)."""

    def __init__(self, dtype: torch.dtype, tokens: int, rows: int, all_kept: bool, ragged: bool = False) -> None:
        torch.manual_seed(0)
        shape = {"hidden_size": MODEL.hidden, "num_hidden_layers": MODEL.layers, "intermediate_size": MODEL.mlp}
        heads = {"num_attention_heads": MODEL.heads, "num_key_value_heads": MODEL.kv_heads, "head_dim": MODEL.head}
        config = LlamaConfig(vocab_size=MODEL.vocabulary, max_position_embeddings=tokens, **shape, **heads)
        self.model = LlamaForCausalLM(config).to(dtype).eval()
        self.ids = torch.randint(0, MODEL.vocabulary, (rows, tokens))
        theta = torch.zeros(4172)
        theta[-1] = 1.0
        if not all_kept:
            theta[-26:-18], theta[-1] = 1.0, -1.0  # by age alone
        if ragged:
            for layer in self.model.model.layers:  # one KV head is read far more sharply than the other
                layer.self_attn.q_proj.weight.data *= 30.0
                layer.self_attn.q_proj.weight.data[: len(layer.self_attn.q_proj.weight) // 2] *= 4.0
                layer.self_attn.k_proj.weight.data *= 10.0
            theta[-26:-18], theta[-18], theta[-1] = 0.0, 100.0, -1.0  # by attention received
        # Logits so large that backward attention takes the kernel that a GPU takes; scores do not depend on them.
        theta[:2400].view(25, 96)[:, :64] = 4.0
        config = dataclasses.replace(CONFIG, selection="ragged" if ragged else "padded")
        self.namm = Watched(config, theta)
        self.shape = dataclasses.replace(MODEL, bytes=torch.empty(0, dtype=dtype).element_size())
        cache = self.run()
        tail = tokens % CONFIG.update_interval
        wide = float(cache.kept_counts().double().mean())
        kept = (wide - tail) / (tokens - tail)
        assert all_kept or 0.1 < kept < 0.9
        self.cache, self.job = cache, RealBlocks(tokens=tokens, kept=kept, rows=rows, memory=config)
        layers = np.array(self.namm.blocks, float).reshape(MODEL.layers, -1, 2)
        BLOCKS[self.job] = [(int(new), columns) for new, columns in layers.mean(0)]

    def run(self) -> MemoryCache:
        self.namm.blocks = []
        with torch.no_grad(), MemoryCache(self.model, self.namm, tiled=False) as cache:
            self.model(self.ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache


CASES = {
    "bfloat16, all kept": (torch.bfloat16, 2048, 1, True),
    "float32, some kept, a tail": (torch.float32, 1900, 1, False),
    "bfloat16, two rows, some kept": (torch.bfloat16, 1536, 2, False),
    "bfloat16, heads of unequal length": (torch.bfloat16, 1536, 1, False, True),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def prefill(request) -> Iterator[Prefill]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "NUMBA", False)  # what a GPU runs
        yield Prefill(*request.param)


def test_what_is_held(prefill):
    computed = sizing.memory(prefill.shape, prefill.job)
    assert computed.cache == pytest.approx(prefill.cache.nbytes, rel=0.02)
    assert computed.state == pytest.approx(prefill.cache.state_nbytes, rel=0.02)
    parameters = sum(p.numel() for p in prefill.model.parameters())
    assert computed.weights == pytest.approx(parameters * prefill.shape.bytes, rel=0.01)


def test_the_shipped_models_state():
    model = LlamaForCausalLM.from_pretrained(ROOT / "models" / "recall-small").eval()
    c = model.config
    shape = (c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim)
    job = sizing.Job(tokens=1000, kept=1.0, memory=CONFIG)
    theta = torch.zeros(4172)
    with torch.no_grad(), MemoryCache(model, Namm(CONFIG, theta)) as cache:
        model(torch.randint(3, c.vocab_size, (1, 1000)), past_key_values=cache, use_cache=True)
    computed = sizing.memory(sizing.Model(*shape, c.intermediate_size, c.vocab_size, 4), job)
    assert computed.state == pytest.approx(cache.state_nbytes, rel=0.1)
    assert computed.cache == pytest.approx(cache.nbytes, rel=0.1)


def peak_of(run: Callable[[], object], folder: Path) -> int:
    """Most bytes that were allocated at a time, by the allocator's own count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return np.cumsum([change for _, change in changes]).max()


def test_the_worst_moment(prefill, tmp_path):
    """Of a prefill; weights and prompt are there before."""
    peak = peak_of(prefill.run, tmp_path)
    computed = sizing.memory(prefill.shape, prefill.job)
    inside = computed.cache + computed.state + max(computed.attention, computed.mlp)
    assert inside == pytest.approx(peak, rel=0.15)


@torch.no_grad()
def test_the_worst_moment_in_an_mlp(tmp_path):
    config = LlamaConfig(
        hidden_size=128, num_hidden_layers=3, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    shape = sizing.Model(layers=3, hidden=128, heads=4, kv_heads=2, head=32, mlp=512, bytes=4)
    ids = torch.zeros(1, 1024, dtype=torch.long)
    peak = peak_of(lambda: model(ids, use_cache=False, logits_to_keep=1), tmp_path)
    assert sizing.memory(shape, sizing.Job(tokens=1024)).mlp == pytest.approx(peak, rel=0.15)


def test_the_work(prefill):
    with FlopCounterMode(display=False) as counter:
        prefill.run()
    counted = {str(op).partition(".")[2]: flop for op, flop in counter.get_flop_counts()["Global"].items()}
    computed = sizing.work(prefill.shape, prefill.job)
    rows = prefill.job.rows
    assert rows * computed.linear == pytest.approx(counted["mm"], rel=0.02)
    due = [columns for new, columns in prefill.job.blocks() if new == CONFIG.update_interval]
    heads = rows * MODEL.layers * MODEL.kv_heads
    # The counter does not know this CPU's fused kernel.
    fused = heads * 2 * CONFIG.hidden * sum(columns**2 for columns in due)
    rest = rows * (computed.attention + computed.memory) - fused
    assert rest == pytest.approx(counted["bmm"], rel=0.05)
    with Traffic() as traffic:
        prefill.run()
    assert rows * (computed.own_traffic + computed.traffic) == pytest.approx(traffic.bytes, rel=0.2)


def test_the_work_of_decoding(prefill):
    """Step by step, over 16 of them: a whole hop."""
    cache = prefill.run()
    next_ids = prefill.ids[:, :1]
    cache.attach()
    with torch.no_grad(), cache, Traffic() as traffic:
        for _ in range(16):
            prefill.model(next_ids, past_key_values=cache, use_cache=True)
    job = dataclasses.replace(prefill.job, answer=17, reference=1)
    BLOCKS[job] = BLOCKS[prefill.job]
    computed = sizing.work(prefill.shape, job)
    assert prefill.job.rows * computed.decode == pytest.approx(traffic.bytes, rel=0.2)


def test_journal_and_prompts(tmp_path):
    random = np.random.default_rng(0)
    text = "Lisbon, and after that the harbour of Oslo"
    results = [
        SampleResult(
            "qasper", "train", i, 0.5, -random.random(), random.random(), random.random(32).tolist(), 2**15, text
        )
        for i in range(1000, 1020)
    ]
    journal = Journal(tmp_path, "job")
    before = journal.path.stat().st_size
    journal.put([(policy_key(PolicySpec("full")), result) for result in results])
    line = (journal.path.stat().st_size - before) / len(results)
    assert sizing.journal_bytes(sizing.Model(), len(text)) == pytest.approx(line, rel=0.05)
    ids = np.arange(32_768, dtype=np.int32)
    prompt = Prompt(SampleRef("qasper", "train", 0), ids, ids[:8], ids[:40], (text,), "qa_f1_score", 32)
    assert sizing.prompt_bytes(sizing.Job()) == pytest.approx(len(pack("key", prompt.pack())), rel=0.01)


def test_blocks_of_a_job():
    """The same fraction of what was fed stays at each update; a tail stays whole."""
    job = sizing.Job(tokens=700, kept=0.5, memory=CONFIG)
    assert list(job.blocks()) == [(256, 256), (256, 384), (188, 444)]
    assert job.held == 444


def test_more_gpus_and_what_is_kept():
    times = [sizing.generation_seconds(sizing.Model(), sizing.Job(kept=k), sizing.Gpu(), 8) for k in (0.1, 0.5, 1.0)]
    assert times == sorted(times)
    one = sizing.generation_seconds(sizing.Model(), sizing.Job(kept=0.1), sizing.Gpu(), 1)
    assert one == pytest.approx(8 * times[0])


def test_the_page_shows_what_the_program_prints(capsys):
    sizing.main([])
    assert capsys.readouterr().out.strip() in PAGE


def test_quoted_messages_are_the_codes():
    """What stands in the page between “ and ” is a message; ... stands for what differs.

    What became of a worker, and of its units, are parts of one message.
    """
    texts = []
    for file in [f for package in ("orchestrator", "workers", "namm_core") for f in (ROOT / package).rglob("*.py")]:
        nodes = ast.walk(ast.parse(file.read_text()))
        texts += [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    quoted = re.findall("“(.+?)”", PAGE, re.DOTALL)
    assert len(quoted) > 15
    for message in quoted:
        for part in re.split(r"\s*\.\.\.\s*|^a worker |; its ", " ".join(message.split())):
            assert any(part in " ".join(text.split()) for text in texts), f"not in the code: {part!r} of {message!r}"


def test_commands_and_settings_exist():
    """Each dotted setting that the page names is one of the job's."""
    from orchestrator.spec import WorkerSpec
    from workers.config import ModelConfig

    for group, cls in (("workers", WorkerSpec), ("model", ModelConfig)):
        for name in re.findall(rf"`{group}\.(\w+)", PAGE):
            assert name in cls.__dataclass_fields__, f"{group}.{name}"
