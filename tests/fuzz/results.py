"""Run folders with damaged records, as `namm report` and `namm runs` read them: a table, or one line."""

from __future__ import annotations

import io
import json
import random
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from orchestrator import cli
from orchestrator.report import runs
from orchestrator.report.summary import summarise
from tests.fuzz import mutation

ROOT = Path(__file__).resolve().parents[2]


class Inputs:
    """The folder of a finished run."""

    def __init__(self, folder: Path) -> None:
        self._run = folder / "smoke"
        self._run.mkdir()
        about = {"name": "smoke", "seed": 0, "generations": 3, "evaluations": 24, "seconds": 3.0, "search_seconds": 2.0}
        about |= {"trained_tasks": ["a"], "heldout_tasks": ["b"], "stages": [], "best_generation": 2}
        result = summarise(_records(), about)
        job = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text("utf-8"))
        told = [{"generation": 1, "validation_fitness": 0.5, "validation_score": 0.5, "validation_full": 0.5}]
        told[0] |= {"validation_kept": 0.5, "best_generation": 1}
        self._files: dict[str, Any] = {"job.yaml": job, "result.json": result, "generations.jsonl": told[0]}
        self._write({})
        status, self._right, said = self._report()
        assert status == 0, said

    def one(self, rng: random.Random) -> bool:
        """See `running.Kind`."""
        name = rng.choice(list(self._files))
        tree = mutation.tree_of(rng, self._files[name])
        data = json.dumps(tree, default=str).encode()
        if rng.random() < 0.4:
            data = mutation.bytes_of(rng, json.dumps(self._files[name]).encode())
        self._write({name: data})
        with redirect_stdout(io.StringIO()):
            assert runs.table(runs.read_all(self._run.parent)).row_count == 1
        status, shown, said = self._report()
        if name != "result.json":
            assert status == 0 and shown == self._right, f"{status}: {said}"
        assert status in (0, 2) and (status == 0 or (said.count("\n") == 1 and said.startswith("namm: "))), said
        return status == 0

    def _write(self, changed: dict[str, bytes]) -> None:
        for name, plain in self._files.items():
            (self._run / name).write_bytes(changed.get(name, json.dumps(plain).encode()))

    def _report(self) -> tuple[int, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(errors):
            status = cli.main(["report", str(self._run), "--markdown"])
        return status, out.getvalue(), errors.getvalue()


def _records() -> list[dict[str, Any]]:
    fixed = {"split": "heldout", "budget": None, "logprob": -0.5, "kept": 0.5, "prediction": "Oslo"}
    return [
        {"task": task, "sample": i, "policy": policy, "score": float(i % 2), **fixed}
        for policy in ("full", "namm", "l2")
        for task in ("a", "b")
        for i in range(3)
    ]
