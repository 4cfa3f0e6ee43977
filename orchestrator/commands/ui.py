"""`namm ui`: MLflow's own pages over the runs of this folder, in this process's place."""

from __future__ import annotations

import json
import os
import sys

import click

from orchestrator.storage.run_folder import RUNS
from orchestrator.tracking import store
from workers.masking import masked_url


@click.command(short_help="serve the MLflow UI until Ctrl-C")
@click.option("--port", default=5000, help="port on 127.0.0.1 (5000)")
@click.option("--uri", help="MLflow store; default: mlflow.db in this folder")
def command(port: int, uri: str | None) -> None:
    """Serves the MLflow UI until Ctrl-C."""
    uri = store.store_of(uri, RUNS)  # where jobs put it
    file = store.sqlite_file(uri)
    if file is not None and not file.exists():
        raise ValueError(f"{file} does not exist yet: run a job first (make evolve), or name a store with --uri")
    words = store.ui_command(uri, port)
    known = _newest(uri)
    print(f"MLflow UI, some 20 s to start; Ctrl-C ends it: {store.ui_page(port)}")
    if "experiment_id" in known:
        print(f"all runs: {store.ui_page(port, known['experiment_id'])}")
        print(f"the last: {store.ui_page(port, known['experiment_id'], known['run_id'])}")
    sys.stdout.flush()
    os.execvpe(words[0], words, {**os.environ, **store.UI_ENVIRONMENT})


def _newest(uri: str) -> dict[str, str]:
    """What the newest run of this folder in the store at `uri` is called there; empty where there is none."""
    for path in sorted(RUNS.glob("*/mlflow.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            known = json.loads(path.read_text("utf-8"))
            if known["uri"] == masked_url(uri):
                return known
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}
