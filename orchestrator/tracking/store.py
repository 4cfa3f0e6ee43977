"""The MLflow store that a run is told to: where it is, whether it can be used, and the command that serves its UI.

Knows addresses and files, not MLflow itself, whose import takes seconds, and nothing of what the store holds.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, unquote

import requests

from orchestrator.addresses import check
from orchestrator.messages import first_line, root_cause
from workers.masking import masked_url

UI_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Environment variables for the process that runs `ui_command`: no telemetry, no job runner beside the UI."""


APP = "namm"
"""The app plug-in (`ui_app`) through which MLflow serves its pages."""

_SQLITE, _SQLITE_DRIVER = "sqlite:///", "sqlite+pysqlite:///"


def store_of(given: str | None, runs: Path) -> str:
    """MLflow URI of the store that jobs use: the one that is `given`, else MLFLOW_TRACKING_URI's, else a local file.

    runs: the folder of run folders, beside which the local file lies.
    """
    return given or os.environ.get("MLFLOW_TRACKING_URI") or default_store(runs.parent)


def default_store(folder: str | Path) -> str:
    """MLflow uri of the sqlite store `mlflow.db` in `folder`, whatever the folder is called."""
    file = str(Path(folder).resolve() / "mlflow.db")
    if not re.search("[%?]", file):
        return f"{_SQLITE}{file}"
    # MLflow makes the folders of a sqlite:///, and takes their names from it as they are written there: encoded.
    return f"{_SQLITE_DRIVER}{quote(file, safe='/ ')}"


def sqlite_file(uri: str) -> Path | None:
    """Database file of an sqlite uri as an absolute path; None for other uris."""
    start = next((start for start in (_SQLITE, _SQLITE_DRIVER) if uri.startswith(start)), None)
    return None if start is None else Path(unquote(uri[len(start) :].partition("?")[0])).absolute()


def artifacts_beside(file: Path) -> str:
    """Where MLflow keeps the files of runs whose database is `file`: a path, as a file:// URL where it needs one."""
    folder = file.parent / "mlartifacts"
    return folder.as_uri() if re.search("[%?#]", str(folder)) else str(folder)


def check_mlflow(uri: str, patience: float = 5.0) -> None:
    """Returns if an MLflow store can be had at `uri`: http(s)://, sqlite:/// or another database's.

    A server must answer within `patience` seconds; a sqlite file must be one, in a folder that can be written
    to or made. Writes nothing. Databases other than sqlite are only checked when they are opened.

    Raises:
        ValueError: one line with the address (credentials masked) and what to do.
    """
    check(uri, "MLflow", "http://HOST:PORT or sqlite:///PATH/mlflow.db")
    scheme = uri.partition(":")[0]
    if scheme in ("http", "https"):
        _check_server(uri, patience)
    elif scheme in ("sqlite", _SQLITE_DRIVER.partition(":")[0]):
        _check_sqlite(uri)
    elif scheme.partition("+")[0] not in ("postgresql", "mysql", "mssql", "databricks"):
        raise ValueError(
            f"MLflow address {masked_url(uri)!r} is of no known kind: give http://HOST:PORT or sqlite:///PATH/mlflow.db"
        )


def _check_server(uri: str, patience: float) -> None:
    start = time.monotonic()
    while True:
        left = max(0.2, start + patience - time.monotonic())
        try:
            with requests.get(f"{uri.rstrip('/')}/health", timeout=left, stream=True) as answer:
                if answer.status_code < 500:
                    return
                reason = f"status {answer.status_code}"
        except requests.exceptions.SSLError:
            return  # it answers; whether its certificate is good is for MLflow's own settings to judge
        except requests.exceptions.InvalidURL as error:
            raise ValueError(
                f"MLflow address {masked_url(uri)!r} cannot be read ({first_line(error)}): give http://HOST:PORT"
            ) from None
        except requests.exceptions.RequestException as error:
            reason = root_cause(error)
        waited = time.monotonic() - start
        if waited + 0.3 >= patience:
            raise ValueError(
                f"MLflow at {masked_url(uri)} did not answer within {waited:.1f} s ({reason}): "
                "start the server, correct the address, or give none to write to a local file"
            )
        time.sleep(0.3)


def _check_sqlite(uri: str) -> None:
    file = sqlite_file(uri)
    if file is None or file.name in ("", ":memory:"):
        raise ValueError(f"MLflow address {uri!r} names no file: give sqlite:///PATH/mlflow.db")
    if "%" in uri and importlib.metadata.version("sqlalchemy").split(".") < ["2", "1"]:
        raise ValueError(f"MLflow store {file}: a path with % or ? needs SQLAlchemy 2.1: work in another folder")
    if file.is_dir():
        raise ValueError(f"MLflow store {file} is a folder: give the path of a file in it")
    folder = file.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
        if file.exists():
            with file.open("r+b") as stream:
                if stream.read(16) not in (b"", b"SQLite format 3\0"):
                    raise ValueError(f"MLflow store {file} is not an sqlite database: move it away or name another")
    except OSError as error:
        raise ValueError(f"MLflow store {file} cannot be written ({error.strerror}): choose another folder") from None


def ui_page(port: int, experiment: str | None = None, run: str | None = None) -> str:
    """Address of a page of the UI on this machine: that of a run, of an experiment's runs, or the first one.

    It names the view for trained models, since MLflow 3.17 opens an experiment in the one for chat applications
    otherwise, whatever the experiment's kind is (`ui_app` chooses the same where an address names none); and of an
    experiment's runs, the charts beside them.
    """
    page = f"http://127.0.0.1:{port}"
    if experiment is None:
        return page
    charts = "" if run else "&compareRunsMode=CHART"
    return f"{page}/#/experiments/{experiment}/runs{f'/{run}' if run else ''}?workflowType=machine_learning{charts}"


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """Command line that serves the MLflow UI of the store at `uri` on 127.0.0.1:`port`, until stopped.

    Run it with UI_ENVIRONMENT added to the environment.

    Raises:
        ValueError: the store is a tracking server, which has its own UI.
    """
    if uri.startswith(("http://", "https://")):
        raise ValueError(f"the runs are at {masked_url(uri)}: open that address in a browser")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    if importlib.metadata.entry_points(group="mlflow.app", name=APP):  # not where an older version was installed
        command += ["--app-name", APP]
    if (file := sqlite_file(uri)) is not None:
        command += ["--artifacts-destination", artifacts_beside(file)]
    return command + ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
