"""What handing out the work costs: `make bench-dispatch`.

A whole generation of 64 candidates and 192 samples (with their mean and the full cache, 66 x 192 units) goes through
the real search, dispatcher and journal, synced to disk, to evaluators that only wait: 32 real Ray actors, then 256
workers that are nothing but a clock, behind the same interface. Then the real evaluator: two workers against one.
Ends with one line, and exit status 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.waiting import WaitingFleet
from namm_core.config import NammConfig
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.ray_connection import connected
from orchestrator.dispatch.ray_fleet import RayFleet
from orchestrator.evolution.loop import Problem, evolve
from orchestrator.protocols import Fleet, Recorder
from orchestrator.search.algorithms.cma_es import CMAESConfig
from orchestrator.spec import FitnessSpec, JobSpec, ValidationSpec, WorkerSpec
from orchestrator.storage.journal import Journal
from workers.config import EvaluatorConfig, ModelConfig
from workers.unit import PolicySpec, SampleRef

ROOT = Path(__file__).parent.parent
PARAMETERS = 4172
MOST_MS_A_SHARD = 2.0
LEAST_OF_IDEAL = 0.95
LEAST_SPEEDUP = 1.7

console = Console(highlight=False)


class Journalled(Recorder):
    """Keeps a generation in the journal, and says now and then how far it is."""

    def __init__(self, journal: Journal, kind: str) -> None:
        self.journal, self.kind, self.shown = journal, kind, 0.0

    def progress(self, generation: int, done: int, of: int) -> None:
        if time.monotonic() - self.shown > 20 or done == of:
            self.shown = time.monotonic()
            console.print(f"  {self.kind}: {done}/{of}", style="dim")

    def told(self, record: dict, settled: Sequence[SampleRef]) -> None:
        self.journal.tell(record, list(settled))


def generation(kind: str, fleet: Fleet, workers: int, seconds: float, candidates: int, samples: int) -> dict:
    """One generation over workers that take `seconds` a unit; what it took, and what of it was our own doing."""
    spec = JobSpec(
        name="bench",
        model=ModelConfig("none"),
        tasks={},
        train=("waited",),
        generations=1,
        search=CMAESConfig(population=candidates),
        fitness=FitnessSpec(samples=samples),
        validation=ValidationSpec(samples=1),
        workers=WorkerSpec(count=workers),
    )
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder, closing(Journal(Path(folder), "bench")) as journal:
        dispatcher = Dispatcher(fleet, spec.workers, journal)
        dispatcher.wait_for(workers)
        cpu, started = time.process_time(), time.monotonic()
        problem = Problem(dispatcher.evaluate, (np.zeros(17), np.ones(17), 1.0), PARAMETERS)
        evolve(spec, problem, Journalled(journal, kind))
        cpu, took, shards = time.process_time() - cpu, time.monotonic() - started, len(journal)
    return {
        "workers": kind,
        "shards": shards,
        "seconds": took,
        "of_ideal": shards * seconds / workers / took,
        "own_ms": 1000 * cpu / shards,
        "own_seconds": cpu,
        "calls": dispatcher.cost.calls,
        "copies": dispatcher.cost.copies,
    }


def speedup(alternations: int, evaluations: int) -> tuple[float, list[float], list[float]]:
    """Median ratio of two workers' evaluations a second to one's, and both series; real evaluations, one thread."""
    config = EvaluatorConfig(
        ModelConfig(str(ROOT / "models" / "recall-small"), ntk_alpha=128),
        {"source": "recall", "tokens": 1544, "kinds": ["resident"]},
        NammConfig(update_interval=128),
    )
    draws = np.random.default_rng(0).standard_normal((8, PARAMETERS)).astype(np.float32) * 0.065
    policies = [PolicySpec("namm", theta) for theta in draws]
    speeds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder, connected("local", "bench-speedup", cpus=3):
        made = {}
        for count in speeds:
            (Path(folder) / str(count)).mkdir()
            fleet, journal = RayFleet(config, WorkerSpec(count=count)), Journal(Path(folder) / str(count), "bench")
            made[count] = Dispatcher(fleet, WorkerSpec(count=count), journal)
        for dispatcher in made.values():  # prompts of other samples: everybody is loaded and warm
            dispatcher.wait_for(dispatcher.fleet.wanted)
            dispatcher.evaluate(policies, [SampleRef("resident", "train", 10_000 + i) for i in range(4)])
        for turn in range(alternations):
            refs = [SampleRef("resident", "train", turn * 1000 + i) for i in range(evaluations // len(policies))]
            for count, dispatcher in made.items():
                started = time.monotonic()
                dispatcher.evaluate(policies, refs)
                speeds[count].append(len(policies) * len(refs) / (time.monotonic() - started))
            console.print(f"  {turn + 1}: {speeds[1][-1]:.1f} and {speeds[2][-1]:.1f} evaluations/s", style="dim")
        for dispatcher in made.values():
            dispatcher.fleet.close()
    return statistics.median(b / a for a, b in zip(speeds[1], speeds[2], strict=True)), speeds[1], speeds[2]


def main() -> int:
    """Runs all parts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a unit")
    parser.add_argument("--alternations", type=int, default=5, help="of one and two workers")
    parser.add_argument("--evaluations", type=int, default=384, help="in each of them")
    options = parser.parse_args()
    (ROOT / "runs").mkdir(exist_ok=True)
    size = (options.seconds, options.candidates, options.samples)
    rows = []
    console.print("32 Ray actors", style="bold")
    config = EvaluatorConfig(ModelConfig("none"), {"seconds": options.seconds})
    with connected("local", "bench-dispatch", cpus=32):
        with closing(RayFleet(config, WorkerSpec(count=32), "benchmarks.waiting:WaitingEvaluator")) as fleet:
            rows.append(generation("32 Ray actors", fleet, 32, *size))
    console.print("256 waiting workers", style="bold")
    rows.append(generation("256 waiting workers", WaitingFleet([options.seconds] * 256), 256, *size))
    console.print("two workers against one", style="bold")
    ratio, one, two = speedup(options.alternations, options.evaluations)
    head = f"{'workers':22}{'shards':>8}{'seconds':>9}{'of ideal':>10}{'own ms/shard':>14}{'own s/generation':>18}"
    console.print(f"\n{head}{'calls':>7}{'copies':>8}", style="bold", soft_wrap=True)
    for row in rows:
        console.print(
            f"{row['workers']:22}{row['shards']:>8}{row['seconds']:>9.1f}{row['of_ideal']:>10.1%}{row['own_ms']:>14.2f}"
            f"{row['own_seconds']:>18.1f}{row['calls']:>7}{row['copies']:>8}",
            soft_wrap=True,
        )
    missed = [f"{r['workers']}: own time" for r in rows if r["own_ms"] > MOST_MS_A_SHARD]
    missed += ["32 Ray actors: of ideal"] if rows[0]["of_ideal"] < LEAST_OF_IDEAL else []
    missed += ["two workers against one"] if ratio < LEAST_SPEEDUP else []
    print(
        f"bench-dispatch: {rows[0]['of_ideal']:.1%} of ideal with 32 Ray actors, own time {rows[0]['own_ms']:.2f} ms a "
        f"shard (256 waiting workers: {rows[1]['of_ideal']:.1%}, {rows[1]['own_ms']:.2f} ms); two workers {ratio:.2f} "
        f"times one (medians {statistics.median(one):.1f} and {statistics.median(two):.1f} evaluations/s)"
        + (f"; MISSED: {', '.join(missed)}" if missed else "")
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
