"""What each key-value head of a job's model is worth: `python -m workers.head_importance JOB.yaml --samples 8`.

Reads training samples of the job, asks `namm_core.head_probe` what their answers lose where one head sees only what is
near, and prints the log-shares of a budget that follow: the first numbers of `start.theta` for a memory with `depths`
and `heads`. Writes every sample to a file as it goes, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from namm_core import head_probe
from namm_core.config import from_mapping
from workers.config import EvaluatorConfig
from workers.evaluator import Evaluator
from workers.targets.language import Language
from workers.unit import SampleRef


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0, or 2 for what cannot be done, with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m workers.head_importance", description=__doc__.split("\n")[0])
    parser.add_argument("job", type=Path, help="a job file: its model, tasks and prompt")
    parser.add_argument("--samples", type=int, default=8, help="training samples of each trained task (8)")
    parser.add_argument("--window", type=int, default=128, help="newest tokens that the probed head sees (128)")
    parser.add_argument("--dtype", default="float32", help="of the model (float32); bfloat16 where that is faster")
    parser.add_argument("--out", type=Path, default=Path("head-importance.jsonl"), help="what has been measured")
    told = parser.parse_args(arguments)
    try:
        rows = list(_measured(told))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    losses = torch.tensor(np.mean([row["losses"] for row in rows], axis=0))
    order = losses.flatten().argsort(descending=True)[:12].tolist()
    print(
        "worth most, in nats:", ", ".join(f"{divmod(at, losses.shape[1])} {losses.flatten()[at]:.3f}" for at in order)
    )
    shares = ", ".join(f"{share:.2f}" for share in head_probe.log_shares(losses).flatten().tolist())
    print(f"depths: {losses.shape[0]}\nheads: {losses.shape[1]}\nthe first {losses.numel()} numbers of start.theta:")
    print(textwrap.fill(shares, 110))
    return 0


def _measured(told: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What was measured, sample by sample; from the file what is there already."""
    job = yaml.safe_load(told.job.read_text("utf-8"))
    if not isinstance(job, dict) or not {"model", "tasks", "train"} <= set(job):
        raise ValueError(f"{told.job}: is no job file with model, tasks and train")
    model = dict(job["model"], dtype=told.dtype)
    settings = {"model": model, "tasks": job["tasks"], "prompt": job.get("prompt", {})}
    config = from_mapping(EvaluatorConfig, settings, "job")
    target = Evaluator(config).target
    if not isinstance(target, Language):
        raise ValueError("heads are probed in language models only")
    done = [json.loads(line) for line in told.out.read_text("utf-8").splitlines()] if told.out.exists() else []
    known = {(row["sample"], row["window"]): row for row in map(dict, done)}
    refs = [SampleRef(task, "train", index) for index in range(told.samples) for task in job["train"]]
    for number, ref in enumerate(refs, 1):
        key = (f"{ref.task}/{ref.index}", told.window)
        if key not in known:
            began = time.monotonic()
            sample = target.sample(ref)
            ids = torch.from_numpy(np.concatenate([sample.ids, sample.reference])).long().to(target.model.device)
            spans = sample.scored or ((0, len(sample.reference)),)
            at = [(len(sample.ids) + first, len(sample.ids) + last) for first, last in spans]
            losses = head_probe.losses(target.model, ids, at, told.window)
            known[key] = {"sample": key[0], "window": key[1], "tokens": len(ids), "losses": losses.tolist()}
            with told.out.open("a", encoding="utf-8") as file:
                print(json.dumps(known[key]), file=file)
            took = time.monotonic() - began
            print(f"{number}/{len(refs)} {key[0]}, {len(ids)} tokens, {took:.0f} s", file=sys.stderr, flush=True)
        yield known[key]


if __name__ == "__main__":
    sys.exit(main())
