"""`namm head`: starts, ends and looks at the services of a cluster's head node. Knows what may be asked of them."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.commands import as_json, print_json
from orchestrator.services import head
from orchestrator.services.head import HeadConfig


@click.command(short_help="Redis and MLflow of a cluster's head node")
@click.argument("action", type=click.Choice(["start", "stop", "status"]))
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=HeadConfig.folder,
    help="where they keep their files (~/namm)",
)
@click.option("--bind", help="address on which workers reach the prompts' Redis (this machine's private one)")
@click.option("--cache-port", default=HeadConfig.cache_port, show_default=True)
@click.option("--gcs-port", default=HeadConfig.gcs_port, show_default=True)
@click.option("--mlflow-port", default=HeadConfig.mlflow_port, show_default=True)
@as_json
def command(
    action: str, folder: Path, bind: str | None, cache_port: int, gcs_port: int, mlflow_port: int, plain: bool
) -> int:
    """Starts or ends Redis and MLflow on a cluster's head node, or says which of them run (exit status 1: not all)."""
    config = HeadConfig(folder, bind, cache_port, gcs_port, mlflow_port)
    if plain and action != "status":
        raise ValueError("--json is for namm head status")
    if action == "start":
        print(f"cache, gcs and mlflow answer; to use them: . {head.start(config)}")
    elif action == "stop":
        print(f"ended: {', '.join(head.stop(config)) or 'nothing was running'}")
    else:
        running = head.status(config)
        if plain:
            print_json(running)
        else:
            print("\n".join(f"{name:8}{'runs' if runs else 'is down'}" for name, runs in running.items()))
        return 0 if all(running.values()) else 1
    return 0
