"""`namm head start|stop|status`: what may be asked of the head node's services, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.services import head
from orchestrator.services.head import HeadConfig


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `namm head`."""
    parser = commands.add_parser("head", help="Redis and MLflow of a cluster's head node")
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("--folder", type=Path, default=HeadConfig.folder, help="where they keep their files (~/namm)")
    parser.add_argument("--bind", help="address on which workers reach the prompts' Redis (this machine's private one)")
    for name in ("cache", "gcs", "mlflow"):
        default = getattr(HeadConfig, f"{name}_port")
        parser.add_argument(f"--{name}-port", type=int, default=default, help=f"({default})")
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace) -> int:
    config = HeadConfig(options.folder, options.bind, options.cache_port, options.gcs_port, options.mlflow_port)
    if options.action == "start":
        print(f"cache, gcs and mlflow answer; to use them: . {head.start(config)}")
    elif options.action == "stop":
        print(f"ended: {', '.join(head.stop(config)) or 'nothing was running'}")
    else:
        running = head.status(config)
        print("\n".join(f"{name:8}{'runs' if runs else 'is down'}" for name, runs in running.items()))
        return 0 if all(running.values()) else 1
    return 0
