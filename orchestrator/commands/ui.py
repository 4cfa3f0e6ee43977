"""`namm ui`: MLflow's own pages over the runs of this folder, in this process's place."""

from __future__ import annotations

import os

import click

from orchestrator.storage.run_folder import RUNS
from orchestrator.tracking import store


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
    print(f"MLflow UI on http://127.0.0.1:{port} (some 20 s to start; Ctrl-C ends it)", flush=True)
    os.execvpe(words[0], words, {**os.environ, **store.UI_ENVIRONMENT})
