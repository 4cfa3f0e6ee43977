"""The headline: does an evolved memory beat the full cache at its best, and every baseline of its size?

`make headline` runs it: first a sweep of the rotary stretch (NTK alpha) for the *full cache alone*, on validation
samples, since a win over a badly stretched base is no win; then `configs/recall.yaml` with three seeds and 600 held-out
samples each. Seeds are pooled per sample: they share the held-out samples, so a sample's differences are averaged over
seeds before the interval is taken. Writes `runs/headline/` and `docs/headline.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from orchestrator import spec
from orchestrator.report import summary, tables  # noqa: E402
from orchestrator.spec import JobSpec  # noqa: E402
from workers.config import EvaluatorConfig  # noqa: E402
from workers.unit import PolicySpec, SampleRef, Unit  # noqa: E402

ALPHAS = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
CONFIG = "configs/recall.yaml"


def base_scores(job: JobSpec, alpha: float, policy: str, samples: int) -> dict[str, float]:
    """Mean score of each kind on validation samples with the rotary base stretched by alpha."""
    from workers.evaluator import Evaluator

    model = replace(job.model, ntk_alpha=alpha)
    evaluator = Evaluator(EvaluatorConfig(model, job.tasks, job.memory))
    scores = {}
    for kind in job.kinds:
        units = [Unit((PolicySpec(policy),), (SampleRef(kind, "validation", i),)) for i in range(samples)]
        scores[kind] = float(np.mean([evaluator.evaluate(unit)[0][0].score for unit in units]))
    return scores


def sweep(job: JobSpec, samples: int) -> list[dict]:
    """Full cache and oracle at every alpha; progress on the way."""
    rows = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        tasks = {
            (alpha, p): pool.submit(base_scores, job, alpha, p, samples) for alpha in ALPHAS for p in ("full", "oracle")
        }
        for alpha in ALPHAS:
            full, oracle = tasks[alpha, "full"].result(), tasks[alpha, "oracle"].result()
            rows.append(
                {
                    "alpha": alpha,
                    "full": float(np.mean(list(full.values()))),
                    "oracle": float(np.mean(list(oracle.values()))),
                    "full_by_kind": full,
                }
            )
            print(
                f"alpha {alpha:>5.0f}   full cache {rows[-1]['full']:.3f}   oracle {rows[-1]['oracle']:.3f}",
                flush=True,
            )
    return rows


def pooled(runs: list[Path], extra: dict) -> dict:
    """One result over all seeds, from records whose numbers are means over seeds, sample by sample."""
    cells = defaultdict(list)
    for run in runs:
        for line in (run / "samples.jsonl").open():
            record = json.loads(line)
            cells[record["policy"], record["task"], record["sample"]].append(record)
    records = []
    for (policy, task, sample), seeds in cells.items():
        mean = {key: float(np.mean([r[key] for r in seeds])) for key in ("score", "logprob", "kept")}
        budget = None if seeds[0]["budget"] is None else float(np.mean([r["budget"] for r in seeds]))
        records.append({"policy": policy, "task": task, "sample": sample, "split": "heldout", "budget": budget, **mean})
    return summary.summarise(records, extra)


def page(job: JobSpec, rows: list[dict], results: list[dict], whole: dict, seconds: float) -> str:
    """`docs/headline.md`."""
    lines = [
        "# The headline, measured",
        "",
        "How well memories do that were evolved from several seeds, beside the full cache at its best and other "
        "policies of the same size. This page is written by `make headline`. All seeds share the held-out samples: in "
        "the pooled table, a sample's scores are averaged over the seeds before the paired interval is computed.",
        "",
        "## The base at its best",
        "",
        "Full cache and oracle on validation samples, by NTK alpha. The job uses the alpha that is best for the *full "
        "cache*.",
        "",
        "| alpha | full cache | oracle |",
        "|---|---|---|",
        *[f"| {r['alpha']:.0f} | {r['full']:.3f} | {r['oracle']:.3f} |" for r in rows],
        "",
        f"## All seeds pooled ({len(results)} seeds, {job.tasks['tokens']} tokens)",
        "",
        tables.markdown(whole),
    ]
    for result in results:
        lines += ["", f"## Seed {result['seed']}", "", tables.markdown(result)]
    lines += ["", f"Time: {seconds / 60:.0f} minutes on {os.cpu_count()} cores, all of it."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--generations", type=int, default=30)
    parser.add_argument("--samples", type=int, default=602, help="held-out samples of each seed")
    parser.add_argument("--sweep-samples", type=int, default=80, help="validation samples of each kind and alpha")
    parser.add_argument("--resume", action="store_true", help="go on with seeds that were interrupted")
    options = parser.parse_args()
    started = time.monotonic()
    job = spec.read(CONFIG)
    folder = Path("runs/headline")
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "sweep.json"
    if not (options.resume and known.exists()):
        known.write_text(json.dumps(sweep(job, options.sweep_samples)))
    rows = json.loads(known.read_text())
    best = max(rows, key=lambda row: row["full"])
    if best["alpha"] != job.model.ntk_alpha:
        print(f"note: the full cache is best at alpha {best['alpha']:.0f}; {CONFIG} says {job.model.ntk_alpha:.0f}")
    runs, results = [], []
    for seed in range(options.seeds):
        run = Path("runs") / f"headline-seed{seed}"
        changes = [f"name={run.name}", f"seed={seed}", f"generations={options.generations}"]
        changes.append(f"evaluation.samples={options.samples}")
        command = [sys.executable, "-m", "orchestrator.cli", "evolve", CONFIG, *changes]
        if not (options.resume and (run / "result.json").exists()):
            subprocess.run(command + ["--resume"] * options.resume, check=True)
        runs.append(run)
        results.append(json.loads((run / "result.json").read_text()))
    whole = pooled(runs, {key: results[0][key] for key in ("trained_tasks", "heldout_tasks", "generations")})
    (folder / "result.json").write_text(json.dumps({**whole, "sweep": rows}, indent=2) + "\n")
    text = page(job, rows, results, whole, time.monotonic() - started)
    (folder / "headline.md").write_text(text)
    Path("docs/headline.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
