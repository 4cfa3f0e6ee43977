"""One memory and the other policies by both protocols, on the same held-out samples and at one size: a Markdown table.

    python -m benchmarks.protocols                                     # the shipped memory; docs/policies.md
    python -m benchmarks.protocols CONFIG --namm PATH --size 0.3 --samples 70 --policies keydiff,snapkv

In one process, without Ray: the numbers are those of `namm evaluate` with `evaluation.protocol` at `streaming` and at
`context`. The NAMM stands there as it is, and brought to the size where it keeps another share, by one shift of its
threshold that is found on validation samples. Intervals are 95 %. Progress goes to stderr. Knows no policy.
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
from orchestrator.evaluation.held_out import at_size, held_out_samples
from orchestrator.evaluation.sizes import Sizing
from orchestrator.paired import paired_interval
from orchestrator.policy_entries import parse_policies
from orchestrator.report.cells import markdown_rows
from orchestrator.session import evaluator_config
from workers.evaluator import Evaluator
from workers.unit import PolicySpec, ProtocolName, SampleRef, SampleResult, Unit

POLICIES = "full,expected_attention,keydiff,snapkv,h2o,tova"


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="configs/recall.yaml")
    parser.add_argument("--namm", default="models/recall-namm", help="one with a threshold")
    parser.add_argument("--size", type=float, default=0.47, help="kept fraction; default: the shipped memory's own")
    parser.add_argument("--samples", type=int, default=140)
    parser.add_argument("--validation", type=int, default=14, help="samples that the NAMM's shift is found on")
    parser.add_argument("--policies", default=POLICIES, help="besides the NAMM")
    parser.add_argument("--protocols", default=",".join(get_args(ProtocolName)))
    options = parser.parse_args()
    job, saved = spec.read(options.config), Namm.from_pretrained(options.namm)
    given = saved.statistics
    statistics = None if given is None else (given.mean.numpy(), given.var.numpy(), given.count)
    evaluator = Evaluator(evaluator_config(job))
    samples = held_out_samples(job.kinds, options.samples)
    sizing = held_out_samples(job.kinds, options.validation, "validation")

    def evaluate(specs: Sequence[PolicySpec], refs: list[SampleRef], progress=None) -> list[list[SampleResult | None]]:
        rows: list[list[SampleResult | None]] = []
        for policy in specs:
            begun = time.process_time()
            rows.append([evaluator.evaluate(Unit((policy,), (ref,)))[0][0] for ref in refs])
            print(f"{policy.name} {policy.protocol}: {time.process_time() - begun:.0f} s", file=sys.stderr, flush=True)
        return rows

    table = [["policy", "protocol", "kept", "score"]]
    for protocol in options.protocols.split(","):
        memory = PolicySpec("namm", saved.theta.numpy(), statistics, protocol=protocol)
        asked = {"namm": memory}
        found = Sizing(evaluate, memory, sizing).at_each([options.size])[options.size]
        if found.shift:
            asked[f"namm, threshold {found.shift:+.2f}"] = found.memory
        for entry in parse_policies(options.policies):
            asked[entry.label] = at_size(entry, options.size, protocol)[1]
        for label, policy in asked.items():
            (row,) = evaluate([policy], samples)
            results = [result for result in row if result is not None]
            mean, low, high = paired_interval(np.array([result.score for result in results]))
            kept = np.mean([result.kept for result in results])
            table.append([label, protocol, f"{kept:.2f}", f"{mean:.3f} [{low:.3f}, {high:.3f}]"])
            print(" | ".join(table[-1]), file=sys.stderr, flush=True)
    print("\n".join(markdown_rows(table)))
    print(f"\n{len(samples)} held-out samples of {len(job.kinds)} kinds.")


if __name__ == "__main__":
    main()
