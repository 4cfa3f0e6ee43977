"""One memory and the other policies by both protocols, on the same held-out samples: one Markdown table.

    python -m benchmarks.protocols                                     # the shipped memory; docs/policies.md
    python -m benchmarks.protocols CONFIG --namm PATH --samples 140 --policies keydiff,snapkv

In one process, without Ray: the numbers are those of `namm evaluate` with `evaluation.protocol` at `streaming` and at
`context`, at the NAMM's own size of each. Intervals are 95 %, of a policy's own mean score and of its paired difference
between the protocols. Progress goes to stderr. Knows no policy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import get_args

import numpy as np

from namm_core import Namm
from orchestrator import spec
from orchestrator.evaluation.held_out import compare, held_out_samples
from orchestrator.paired import paired_interval
from orchestrator.policy_entries import parse_policies
from orchestrator.report.cells import markdown_rows
from orchestrator.session import evaluator_config
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, ProtocolName, SampleRef, SampleResult, Unit

POLICIES = "expected_attention,keydiff,snapkv,h2o,tova"
STREAMING, CONTEXT = get_args(ProtocolName)


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="configs/recall.yaml")
    parser.add_argument("--namm", default="models/recall-namm")
    parser.add_argument("--samples", type=int, default=140)
    parser.add_argument("--policies", default=POLICIES, help="besides full and namm")
    options = parser.parse_args()
    job = spec.read(options.config)
    saved = Namm.from_pretrained(options.namm)
    given = saved.statistics
    statistics = None if given is None else (given.mean.numpy(), given.var.numpy(), given.count)
    memory = PolicySpec("namm", saved.theta.numpy(), statistics)
    evaluator = Evaluator(evaluator_config(job))
    entries = parse_policies(f"full,namm,{options.policies}")
    samples = held_out_samples(job.kinds, options.samples)
    scores: dict[tuple[str, str], np.ndarray] = {}
    kept: dict[tuple[str, str], float] = {}

    def evaluate(specs: Sequence[PolicySpec], refs: list[SampleRef], progress=None) -> list[list[SampleResult | None]]:
        rows: list[list[SampleResult | None]] = []
        for policy in specs:
            begun = time.process_time()
            rows.append([evaluator.evaluate(Unit((policy,), (ref,)))[0][0] for ref in refs])
            print(f"{policy.name} {policy.protocol}: {time.process_time() - begun:.0f} s", file=sys.stderr, flush=True)
        return rows

    for protocol in (STREAMING, CONTEXT):
        namm = PolicySpec("namm", memory.theta, memory.statistics, protocol=protocol)
        records = compare(evaluate, namm, entries, samples)
        for entry in entries:
            mine = [record for record in records if record["policy"] == entry.label]
            scores[entry.label, protocol] = np.array([record["score"] for record in mine])
            kept[entry.label, protocol] = float(np.mean([record["kept"] for record in mine]))
    rows = [["policy", "kept", "streaming", "context", "context minus streaming"]]
    for entry in entries:
        mine = [scores[entry.label, protocol] for protocol in (STREAMING, CONTEXT)]
        sizes = ", ".join(f"{kept[entry.label, protocol]:.2f}" for protocol in (STREAMING, CONTEXT))
        rows.append([f"`{entry.label}`", sizes, *map(_interval, mine), _interval(mine[1] - mine[0], signed=True)])
    print("\n".join(markdown_rows(rows)))
    print(f"\n{len(samples)} held-out samples of {len(job.kinds)} kinds; kept: streaming, context.")


def _interval(values: np.ndarray, signed: bool = False) -> str:
    mean, low, high = paired_interval(values)
    sign = "+" if signed else ""
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    main()
