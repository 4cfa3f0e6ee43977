"""What each key-value head of a job's model is worth: `python -m workers.head_importance JOB.yaml --samples 6`.

Reads training samples of the job and measures (`namm_core.head_probe`), first, what answers lose where one head sees
only what is near and all others see everything; then, on other samples, where only the dozen worth most see far, what
they gain by one head more. Prints the log-shares of a budget that follow: the first numbers of `start.theta` for a
memory with `depths` and `heads`. Writes every sample to a file as it goes, and goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from namm_core import head_probe
from namm_core.config import from_mapping
from workers.config import EvaluatorConfig
from workers.evaluator import Evaluator
from workers.targets.language import Language
from workers.unit import SampleRef

FAR = 12
"""Heads that see far in the second pass."""


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0, or 2 for what cannot be done, with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m workers.head_importance", description=__doc__.split("\n")[0])
    parser.add_argument("job", type=Path, help="a job file: its model, tasks and prompt")
    parser.add_argument("--samples", type=int, default=6, help="training samples of either pass (6)")
    parser.add_argument("--window", type=int, default=192, help="newest tokens that the other heads see (192)")
    parser.add_argument("--dtype", default="float32", help="of the model (float32); bfloat16 where that is faster")
    parser.add_argument("--out", type=Path, default=Path("head-importance.jsonl"), help="what has been measured")
    told = parser.parse_args(arguments)
    try:
        worths = _measured(told)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    order = worths.flatten().argsort(descending=True)[:FAR].tolist()
    print("layer.head and its worth in nats:")
    print(" ".join(f"{at // worths.shape[1]}.{at % worths.shape[1]} {worths.flatten()[at]:.3f}" for at in order))
    print(f"depths: {worths.shape[0]}\nheads: {worths.shape[1]}\nthe first {worths.numel()} numbers of start.theta:")
    shares = ", ".join(f"{share:.2f}" for share in head_probe.log_shares(worths).flatten().tolist())
    print(textwrap.fill(shares, 110))
    return 0


def _measured(told: argparse.Namespace) -> torch.Tensor:
    """(layers, kv_heads), the worths of the second pass."""
    probe = _Probe(told)
    alone = probe.mean(range(told.samples), None)
    far = torch.zeros(alone.numel(), dtype=torch.bool)
    far[alone.flatten().argsort(descending=True)[:FAR]] = True
    return probe.mean(range(told.samples, 2 * told.samples), far.view(alone.shape))


class _Probe:
    """A job's model and training samples, and what has been measured on them."""

    def __init__(self, told: argparse.Namespace) -> None:
        job = yaml.safe_load(told.job.read_text("utf-8"))
        if not isinstance(job, dict) or not {"model", "tasks", "train"} <= set(job):
            raise ValueError(f"{told.job}: is no job file with model, tasks and train")
        model = dict(job["model"], dtype=told.dtype)
        settings = {"model": model, "tasks": job["tasks"], "prompt": job.get("prompt", {})}
        target = Evaluator(from_mapping(EvaluatorConfig, settings, "job")).target
        if not isinstance(target, Language):
            raise ValueError("heads are probed in language models only")
        self.target, self.tasks, self.told = target, job["train"], told
        rows = told.out.read_text("utf-8").splitlines() if told.out.exists() else []
        self.known = {row["of"]: row["worths"] for row in map(json.loads, rows)}

    def mean(self, numbers: range, far: torch.Tensor | None) -> torch.Tensor:
        """(layers, kv_heads), over the training samples of these numbers; far: as in `head_probe.worths`."""
        found = []
        for number in numbers:
            ref = SampleRef(self.tasks[number % len(self.tasks)], "train", number // len(self.tasks))
            seen = "all" if far is None else "".join(map(str, far.int().flatten().tolist()))
            of = f"{ref.task}/{ref.index}, window {self.told.window}, far {seen}"
            if of not in self.known:
                began = time.monotonic()
                worths = self._worths(ref, far)
                with self.told.out.open("a", encoding="utf-8") as file:
                    print(json.dumps({"of": of, "worths": worths}), file=file)
                self.known[of] = worths
                took = f"{time.monotonic() - began:.0f} s"
                print(
                    f"{number + 1}/{2 * self.told.samples} {ref.task}/{ref.index} {took}", file=sys.stderr, flush=True
                )
            found.append(self.known[of])
        return torch.tensor(found).mean(0)

    def _worths(self, ref: SampleRef, far: torch.Tensor | None) -> list[list[float]]:
        sample = self.target.sample(ref)
        ids = torch.from_numpy(np.concatenate([sample.ids, sample.reference])).long().to(self.target.model.device)
        spans = sample.scored or ((0, len(sample.reference)),)
        at = [(len(sample.ids) + first, len(sample.ids) + last) for first, last in spans]
        return head_probe.worths(self.target.model, ids, at, self.told.window, far).tolist()


if __name__ == "__main__":
    sys.exit(main())
