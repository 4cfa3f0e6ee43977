"""`namm evolve CONFIG --dry-run`: its numbers recomputed by hand, its sources, and that it touches nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
import yaml
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

from orchestrator import spec
from orchestrator.plan import model_shapes as shapes
from orchestrator.plan import page as plan_page
from orchestrator.plan import provenance as origin
from orchestrator.plan.plan import Assumed, Plan, plan
from workers.config import ModelConfig

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
OTHER_TARGETS = [path for path in FILES if "\ntarget:" in path.read_text()]
CONFIGS = [path for path in FILES if path not in OTHER_TARGETS]
PAPER = ROOT / "configs" / "llama3-8b-longbench.yaml"


def planned(path: Path, *overrides: str, **assumed) -> Plan:
    """The plan of a shipped job; a model's folder is looked for from the repository's root, as a person does."""
    job = spec.read(path, list(overrides))
    if (ROOT / job.model.path).is_dir():
        job = dataclasses.replace(job, model=dataclasses.replace(job.model, path=str(ROOT / job.model.path)))
    return plan(job, path.read_text(), list(overrides), Assumed(**assumed))


def printed(made: Plan) -> str:
    console = Console(width=plan_page.WIDTH, no_color=True)
    with console.capture() as capture:
        console.print(plan_page.page(made))
    return capture.get()


def test_the_papers_run_to_the_number():
    """docs/memory.md and the paper's section 4: what its configuration must come to."""
    job = spec.read(PAPER)
    assert [stage.train for stage in job.plan] == [
        ("passage_retrieval_en",),
        ("passage_retrieval_en", "dureader"),
        ("passage_retrieval_en", "dureader", "narrativeqa"),
    ]
    assert {(stage.population, stage.samples) for stage in job.plan} == {(32, 64)}
    search, memory = job.search, job.memory
    assert (search.variant, search.sigma0, search.elite_fraction, job.start.bias) == ("full", 0.065, 0.5, 0.0)
    assert (memory.update_interval, memory.n_fft, memory.hop, memory.ema) == (512, 32, 16, 0.99)
    assert (memory.age_dim, memory.age_max_period, memory.hidden, memory.selection) == (8, 50_000, 32, "padded")
    assert (job.fitness.measure, job.fitness.normalise, job.fitness.base_floor) == ("score", True, 1e-7)
    assert (job.model.path, job.model.dtype) == ("meta-llama/Meta-Llama-3-8B", "bfloat16")
    scale, alpha = 4, 2  # base' = base (alpha s - (alpha - 1))^(d/(d-2))
    assert job.model.ntk_alpha == alpha * scale - (alpha - 1)
    assert len(job.kinds) == len(set(job.kinds)) == 21
    for value in origin.values(job, PAPER.read_text()):
        if value.given and not value.key.endswith("name") and value.key not in ("train", "generations"):
            assert any(word in value.source for word in ("paper", "(read)", "chosen")), value


def test_requests_and_tokens():
    made = planned(PAPER, tokens=1000)
    one, two, three = made.stages
    assert (one.requests, two.requests, three.requests) == (34 * 64, 34 * 128, 34 * 192)
    assert one.tokens == 34 * 64 * 1000
    # 334, 334, 333 generations, looked at each 10th and at the end: mean, averaged, full on 200 a task.
    assert [(s.generations, s.looks, s.validation) for s in made.stages] == [
        (334, 34, 600),
        (334, 34, 1200),
        (333, 34, 1800),
    ]
    searched = 334 * 34 * 64 + 334 * 34 * 128 + 333 * 34 * 192
    assert made.requests == searched + 34 * (600 + 1200 + 1800) + 3150 * 4
    page = printed(made)
    assert "(32 + 1 + 1) x 64 x 3 = 6,528" in page and f"{made.requests:,} requests" in page


def test_memory_and_hours_by_hand():
    """The formulas of docs/operations.md written out once more, block by block."""
    made = planned(PAPER, tokens=32_768, kept=0.3, tflops=500.0)
    layers, d, query, groups, s, f, v = 32, 4096, 32, 8, 128, 14336, 128_256
    linear = layers * (2 * d * s * (query + groups) + 3 * d * f)
    weights = 2 * (linear + 2 * v * d)
    token = 2 * layers * groups * s * 2
    full, namm, all_kept = made.sized.full, made.sized.memory[0.3], made.sized.memory[1.0]
    assert full.weights == namm.weights == weights
    assert full.cache == all_kept.cache == 32_768 * token == 4 * 2**30
    assert namm.cache == pytest.approx(0.3 * 4 * 2**30)
    assert full.state == 0 and all_kept.state == 32_768 * layers * groups * (4 * 17 + 2 * 16 + 4)
    held = [0.3 * 512 * i + 512 for i in range(64)]
    flop = 2 * linear * 32_768 + 2 * d * v + 4 * layers * query * s * sum(512 * k for k in held)
    spectral = layers * groups * sum(128 * 512 * k + 64 * k * k + 2704 * k for k in held)
    kept = 0.3 * 32_768
    state = 4 * 17 + 2 * (16 + 7) + 4
    of_step = layers * groups * (3 * 4 * s + 2 * state + 4 * 24 + 12 * 3 + 12 * 8 + 140)
    written = layers * 32_768 * 2 * (50 * d + (26 * query + 16 * groups) * s + 8 * f)
    inside = layers * sum(512 * k for k in held) * (24 * query + (12 * 3 + 64) * groups)
    inside += layers * 32_768 * 512 * 8 * query  # the mask of what comes later
    inside += layers * groups * sum(k * (8 * s * 2 + 6000) for k in held)
    plain_flop = 2 * linear * 32_768 + 2 * d * v + 2 * layers * query * s * 32_768**2

    def seconds(answer: float) -> tuple[float, float]:
        """With a memory, and with the full cache; the reference takes one step, another answer one a token."""
        steps = answer - 1 + 1
        moved = written + inside + steps * (weights + kept * of_step)
        namm = flop / (0.4 * 500e12) + spectral / (0.4 * 67e12) + moved / (0.7 * 3.35e12)
        plain_moved = written + steps * (weights + 32_768 * 3 * token)
        return namm, plain_flop / (0.4 * 500e12) + plain_moved / (0.7 * 3.35e12)

    hours = 0.0
    for stage, generations, answers in zip(
        made.stages, (334, 334, 333), ([32], [32, 128], [32, 128, 128]), strict=True
    ):
        one, plain = seconds(sum(answers) / len(answers))
        assert stage.seconds == pytest.approx(64 * len(answers) * (33 * one + plain), rel=1e-6)
        assert stage.look_seconds == pytest.approx(200 * len(answers) * (2 * one + plain), rel=1e-6)
        hours += (generations * stage.seconds + 34 * stage.look_seconds) / 3600
    # LongBench's own limits (config/dataset2maxlen.json), in the order of its 21 tasks.
    limits = [128, 128, 64, 64, 32, 32, 32, 128, 512, 512, 512, 512, 64, 32, 128, 64, 32, 32, 32, 64, 64]
    one, plain = seconds(sum(limits) / 21)
    assert made.sized.table_hours == pytest.approx(3150 * (3 * one + plain) / 3600, rel=1e-6)
    assert made.hours == pytest.approx(hours + made.sized.table_hours, rel=1e-6)
    assert f"{made.hours:,.0f} h" in printed(made)


def test_faster_gpus_and_what_is_kept():
    hours = [planned(PAPER, kept=k).hours for k in (0.1, 0.5, 1.0)]
    assert hours == sorted(hours) and hours[0] < hours[2]
    assert planned(PAPER, kept=0.1).sized.worst_hours == pytest.approx(hours[2])
    assert planned(PAPER, tflops=2000.0).hours < planned(PAPER).hours
    assert planned(PAPER, "model.dtype=float32").gpu.tensor == 67  # no tensor cores for float32


@pytest.mark.parametrize("path", OTHER_TARGETS, ids=[path.stem for path in OTHER_TARGETS])
def test_of_other_targets_the_plan_says_what_it_leaves_out(path):
    made = planned(path)
    assert any("prompt length" in text for text in made.missing) and f"{made.requests:,} requests" in printed(made)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_every_shipped_job_has_a_plan(path):
    made = planned(path)
    page = printed(made)
    assert not made.missing, made.missing
    assert max(map(len, page.splitlines())) <= 80
    assert made.hours > 0 and f"{made.requests:,} requests" in page
    for value in made.values:
        assert value.given or f"default of {value.source.split()[-1]}" == value.source
        assert not value.given or value.source.startswith(("line ", "follows"))


HARMLESS = """
import os, sys
touched = []
def hook(event, arguments):
    if event == "open":
        name, mode, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and name != os.devnull:
            touched.append((event, str(name)))
    elif event == "os.mkdir" and os.path.isdir(arguments[0]):
        pass  # asked for, and there already
    elif event.startswith(("socket.connect", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir",
                           "os.remove", "os.rename", "os.system", "os.fork", "os.posix_spawn")):
        touched.append((event, str(arguments)[:200]))
sys.addaudithook(hook)
from orchestrator.cli import main
status = main(sys.argv[1:])
heavy = sorted({"torch", "transformers", "mlflow"} & set(sys.modules))
if "ray" in sys.modules and sys.modules["ray"].is_initialized():
    heavy.append("ray")
print("TOUCHED", touched, heavy, file=sys.stderr)
sys.exit(status)
"""


def dry(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in an empty folder and an empty home, watched by an audit hook."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NAMM_", "MLFLOW_", "RAY_"))}
    clean |= {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    clean |= {"HF_HOME": str(tmp_path / "hf"), "MPLCONFIGDIR": matplotlib.get_cachedir()} | environment  # its fonts
    command = [sys.executable, "-c", HARMLESS, "evolve", *arguments]
    return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120)


def test_nothing_is_touched(tmp_path):
    """No file written, no address looked up or called, no process started, nothing heavy imported."""
    done = dry(tmp_path, str(PAPER), "--dry-run", "--kept", "0.5", "search.population=16")
    assert done.returncode == 0, done.stderr
    assert "TOUCHED [] []" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert "kept 0.50" in done.stdout and "search.population" in done.stdout and "command line" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_memory_is_as_large_as_its_scorer_makes_it(tmp_path):
    """theta is counted from the configuration, whatever the scorer, and without torch."""
    done = dry(tmp_path, str(PAPER), "--dry-run", "memory.scorer=mlp")
    assert done.returncode == 0 and "TOUCHED [] []" in done.stderr, done.stderr
    assert "a memory 2.6 KiB run folder" in " ".join(done.stdout.split())
    assert "memory.scorer is mlp: FLOP" in done.stdout
    wide = planned(PAPER, "memory.hidden=64").theta
    assert (planned(PAPER).theta, wide) == (4 * 4172, 4 * (25 * 192 + 192 + 64 * 50 + 50 + 25 + 1))


def test_a_shape_in_the_hubs_cache(tmp_path):
    """config.json of a repository that was fetched before is what counts, not the table."""
    repository = tmp_path / "hf" / "hub" / "models--meta-llama--Meta-Llama-3-8B"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    config = LlamaConfig(num_hidden_layers=5, hidden_size=64, num_attention_heads=4, intermediate_size=96)
    (snapshot / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    done = dry(tmp_path, str(PAPER), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "5 layers, hidden 64, 4/4 heads of 16" in done.stdout
    assert "snapshots" in done.stdout and "public shapes" not in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dry-run", "--kept", "1.5"], "--kept must lie above 0 and at most at 1, not 1.5"),
        (["--dry-run", "--tflops", "0"], "--tflops must be above 0"),
        (["--tokens", "5"], "--tokens is for --dry-run"),
        (["--dry-run", "stages.0.generations=none"], "generations: expected int, found 'none'"),
        (["--dry-run", "model.dtpye=float32"], "did you mean 'dtype'"),
    ],
)
def test_one_line_for_bad_input(capsys, monkeypatch, tmp_path, arguments, message):
    from orchestrator.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["evolve", str(PAPER), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_known_is_said(tmp_path):
    plain = yaml.safe_load(PAPER.read_text())
    plain["model"]["path"] = "someone/unheard-of"
    plain["tasks"] = {"source": "nobodys"}
    del plain["prompt"]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(plain))
    made = planned(path)
    assert len(made.missing) == 3
    page = " ".join(printed(made).split())
    for words in ("someone/unheard-of is not in", "give --tokens", "nobodys", "(32 + 1 + 1) x 64 x 1 = 2,176"):
        assert words in page
    assert made.hours is None and made.journal is None
    assert planned(path, tokens=4096).stages[0].tokens == 34 * 64 * 4096


def test_shapes(tmp_path):
    """The table against models of those shapes, the shipped folder against its weights."""
    classes = {"meta-llama": LlamaConfig, "HuggingFaceTB": LlamaConfig, "Qwen": Qwen3Config, "google": Gemma3TextConfig}
    for path, known in shapes.KNOWN.items():
        config = classes[path.partition("/")[0]](
            num_hidden_layers=known.layers,
            hidden_size=known.hidden,
            num_attention_heads=known.heads,
            num_key_value_heads=known.kv_heads,
            head_dim=known.head,
            intermediate_size=known.mlp,
            vocab_size=known.vocabulary,
            tie_word_embeddings=known.tied,
        )
        with torch.device("meta"):
            real = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        assert known.parameters == pytest.approx(real, rel=1e-3), path
    fetched = shapes.find(ModelConfig("smollm2"))[0]
    assert fetched.layers == 30 and fetched.bytes == 4
    folder = ROOT / "models" / "recall-small"
    found, where = shapes.find(ModelConfig(str(folder)))
    with safe_open(folder / "model.safetensors", "np") as weights:
        real = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert found.parameters == pytest.approx(real, rel=0.01) and where.endswith("config.json")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    assert shapes.find(ModelConfig(str(tmp_path)))[1].endswith(
        "does not say: hidden_size, num_attention_heads, intermediate_size, vocab_size"
    )
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json cannot be read"):
        shapes.find(ModelConfig(str(tmp_path)))


def test_where_values_come_from():
    text = """# about the file
name: a   # the name
# above the seed
seed: 3
model: {path: "owner/# no comment", dtype: bfloat16}   # both
tasks:
  source: x
stages:
  - train: [p,
            q]   # behind a list
    generations: 7
"""
    job = spec.parse(text, "job", ["seed=4", "fitness.samples=9"])
    found = {value.key: value.source for value in origin.values(job, text, ["seed=4", "fitness.samples=9"])}
    assert found["name"] == "line 2: the name"
    assert found["seed"] == found["fitness.samples"] == "command line"
    assert {v.key: v.source for v in origin.values(job, text)}["seed"] == "line 4: above the seed"
    assert found["model.path"] == found["model.dtype"] == "line 5: both"
    assert found["tasks.source"] == "line 7"
    assert found["stages.0.train"] == "line 9: behind a list"
    assert found["train"] == found["generations"] == "follows from other settings"
    assert found["search.sigma0"] == "default of orchestrator.search.algorithms.cma_es.CMAESConfig"
