"""Records a job in an MLflow store: one run, a batch of metrics for each generation, files, system metrics.

Nothing here makes the search wait: messages go into a queue, and a thread sends them, at once or when a lost server is
back. Knows nothing of what the numbers mean, and never sends a password.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.messages import first_line
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.redaction import without_secrets
from orchestrator.tracking.store import check_mlflow, sqlite_file
from workers.masking import masked_url

# Read by MLflow when it is imported or at each request. Retries are ours; its own would block for minutes.
for _variable, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}.items():
    os.environ.setdefault(_variable, _value)

from filelock import FileLock  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

from orchestrator.tracking import registry  # noqa: E402
from orchestrator.tracking.system_metrics import SystemMetrics  # noqa: E402

logger = logging.getLogger(__name__)
for _noisy, _level in {"mlflow.store.db.utils": logging.CRITICAL, "alembic": logging.WARNING}.items():
    logging.getLogger(_noisy).setLevel(_level)

# MLflow's limits (mlflow/utils/validation.py).
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
_KEY_LENGTH = 250
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment by which MLflow's UI shows runs and charts, and no traces of chat applications; 3.17 goes by the
address that is opened (`store.ui_page`)."""

# Sent again, these would be refused again.
_REFUSALS = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


class Tracker:
    """One job's MLflow run. A process may have several.

    A run that is resumed keeps what it has: parameters that changed become tags `resumed.<name>`, and generations that
    are recorded already may be recorded again (only what is missing is sent).

    Args:
        uri: MLflow store, http(s)://..., sqlite:///... or another database's (see `store.default_store`).
        experiment, run_name: names shown in the UI.
        params: what the job was configured with; nested mappings become dotted names, secrets ***.
        tags: further labels; "mlflow.note.content" is the description shown in the UI (Markdown).
        artifact_location: folder or URI for the files of a new experiment; None leaves it to the server, or
            takes `mlartifacts` beside an sqlite file.
        run_id: the run to go on with; if it no longer exists, a new run is made, with a warning.
        system_metrics: whether this machine's load is recorded, too.

    Attributes:
        uri: of the store.
        run_id, experiment_id: MLflow's identifiers.

    Raises:
        ValueError: the store cannot be reached or used (one line that says why).
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping | None = None,
        tags: Mapping[str, str] | None = None,
        artifact_location: str | None = None,
        run_id: str | None = None,
        system_metrics: bool = True,
    ):
        check_mlflow(uri)
        self.uri = uri
        self._recorded: set[tuple[str, int]] = set()
        self._not_finite: set[str] = set()
        self._finished = False
        labels = {**git_tags(), **without_secrets(tags or {})}
        first_step = 0
        with _plainly(uri):
            with _alone(uri):
                self._client = MlflowClient(uri)
                run = self._resumed(run_id) if run_id else None
                if run is None:
                    parent = _experiment(self._client, uri, experiment, artifact_location)
                    run = self._client.create_run(parent, run_name=run_name)
            if history := self._client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage"):
                first_step = 1 + max(point.step for point in history)
        self.run_id = run.info.run_id
        self.experiment_id = run.info.experiment_id
        self._outbox = Outbox(masked_url(uri), _may_pass)
        self._send_labels(flattened(params or {}), run.data.params, labels)
        past = [key for key in run.data.metrics if not key.startswith("system/")]
        if past:
            self._outbox.put("the record of earlier generations", lambda: self._read_past(past))
        self._monitor = SystemMetrics(self._send_metrics, first_step) if system_metrics else None

    def generation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records generation `step` as one batch. Returns at once; NaN and infinities are left out."""
        self._send_metrics(metrics, step, once=True)

    def metrics_final(self, metrics: Mapping[str, float]) -> None:
        """Records numbers that belong to the whole job; of several values under a name, the last one counts."""
        self._send_metrics(metrics, step=0)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Sends the file (or folder) `path` as it is when its turn comes, into the run's `folder`."""
        path = Path(path).absolute()
        send: Callable[..., None] = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._outbox.put(f"artifact {path.name}", lambda: send(self.run_id, str(path), folder))

    def register(
        self, folder: str | Path, model: str, alias: str | None, tags: Mapping[str, str], description: str | None = None
    ) -> None:
        """Makes a saved NAMM a version of a registered model; again, with the same files, changes nothing.

        See `registry.register`.
        """
        path = Path(folder).absolute()
        self._outbox.put(
            f"version of the registered model {model}",
            lambda: registry.register(self._client, self.run_id, path, model, alias, tags, description),
        )

    def tag(self, name: str, value: str) -> None:
        """Sets a label of the run, in the place of an earlier value."""
        value = str(without_secrets({name: value})[name])[:_TAG_LENGTH]
        self._outbox.put(f"tag {name}", lambda: self._client.set_tag(self.run_id, name, value))

    @property
    def ids(self) -> dict[str, str]:
        """`run_id` and `experiment_id`."""
        return {"run_id": self.run_id, "experiment_id": self.experiment_id}

    @property
    def pending(self) -> int:
        """Number of messages that are not in the store yet."""
        return self._outbox.pending

    def flush(self, patience: float = 10.0) -> bool:
        """Waits until everything is sent (True), or until the store has been lost for `patience` seconds (False)."""
        return self._outbox.drain(patience)

    def finish(self, status: str = "FINISHED", patience: float = 10.0) -> bool:
        """Ends the run as FINISHED, FAILED or KILLED; waits and returns as `flush` does."""
        if self._finished:
            return self._outbox.pending == 0
        self._finished = True
        if self._monitor is not None:
            self._monitor.stop()
        end = _now()
        self._outbox.put("end of the run", lambda: self._client.set_terminated(self.run_id, status, end))
        sent = self._outbox.drain(patience)
        if not sent:
            logger.warning(
                "MLflow did not come back: %d messages are not in its record; resume the job to send them",
                self._outbox.pending,
            )
        self._outbox.stop()
        return sent

    def _resumed(self, run_id: str) -> Run | None:
        """The run to go on with; None where MLflow no longer has it."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            logger.warning("MLflow no longer has run %s; a new one is made", run_id)
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run

    def _read_past(self, keys: list[str]) -> None:
        for key in keys:
            history = self._client.get_metric_history(self.run_id, key)
            self._recorded.update((key, point.step) for point in history)

    def _send_labels(self, params: dict[str, str], known: dict[str, str], labels: Mapping[str, str]) -> None:
        params = {_name(key): value[:_PARAM_LENGTH] for key, value in params.items()}
        labels = {key: str(value)[:_TAG_LENGTH] for key, value in labels.items()}
        # MLflow refuses to change a parameter.
        labels |= {f"resumed.{k}": v for k, v in params.items() if k in known and known[k] != v}
        new = [Param(key, value) for key, value in params.items() if key not in known]
        marks = [RunTag(key[:_KEY_LENGTH], value) for key, value in labels.items()]
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            params_batch = new[start : start + _PARAMS_PER_BATCH]
            self._outbox.put("params", partial(self._client.log_batch, self.run_id, params=params_batch))
        for start in range(0, len(marks), _PARAMS_PER_BATCH):
            tags_batch = marks[start : start + _PARAMS_PER_BATCH]
            self._outbox.put("tags", partial(self._client.log_batch, self.run_id, tags=tags_batch))

    def _send_metrics(self, metrics: Mapping[str, float], step: int, once: bool = False) -> None:
        now, batch = _now(), []
        for key, value in metrics.items():
            value = float(value)
            if math.isfinite(value):
                batch.append(Metric(_name(key), value, now, step))
            elif key not in self._not_finite:
                self._not_finite.add(key)
                logger.warning("metric %s is %s at step %d: such values are left out of MLflow", key, value, step)
        # Timestamps are fixed here, so a batch that is sent twice after a lost answer is stored once.
        for start in range(0, len(batch), _METRICS_PER_BATCH):
            part = batch[start : start + _METRICS_PER_BATCH]
            self._outbox.put(f"metrics of step {step}", partial(self._log, part, once))

    def _log(self, batch: list[Metric], once: bool) -> None:
        if once:
            batch = [metric for metric in batch if (metric.key, metric.step) not in self._recorded]
        if batch:
            self._client.log_batch(self.run_id, metrics=batch)


def flattened(params: Mapping) -> dict[str, str]:
    """Nested `params` as {"a.b": text}, secrets masked; sequences as JSON."""
    flat: dict[str, str] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                walk(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, (list, dict)):
            flat[name] = json.dumps(value, default=str)
        else:
            flat[name] = str(value)

    walk(without_secrets(params), "")
    return flat


def git_tags() -> dict[str, str]:
    """The git revision of this code and whether its files differ from it; empty outside a clone."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return {}
        revision = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": revision, "git.dirty": str(dirty).lower()}


def check_experiment(uri: str, name: str) -> None:
    """Makes the experiment if there is none. Raises ValueError, one line, where it or its store cannot be used."""
    with _plainly(uri), _alone(uri):
        _experiment(MlflowClient(uri), uri, name, None)


@contextmanager
def _plainly(uri: str) -> Iterator[None]:
    """Turns what MLflow raises into one line."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise ValueError(f"MLflow at {masked_url(uri)} cannot be used: {first_line(error)}") from None


def _alone(uri: str) -> AbstractContextManager:
    """One job at a time: two that make the tables of a new sqlite store together break it for each other."""
    if (file := sqlite_file(uri)) is None:
        return nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock")


def _experiment(client: MlflowClient, uri: str, name: str, artifact_location: str | None) -> str:
    if artifact_location is None and (file := sqlite_file(uri)) is not None:
        artifact_location = str(file.parent / "mlartifacts")
    if artifact_location is not None and "://" not in artifact_location:
        artifact_location = Path(artifact_location).absolute().as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifact_location, tags=KIND)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another job may have been faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"MLflow's experiment {name!r} was deleted: name another with mlflow_experiment=..., or restore it: "
            f"MLFLOW_TRACKING_URI={masked_url(uri)} mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    for key, value in KIND.items():
        if key not in found.tags:
            client.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id


def _may_pass(error: Exception) -> bool:
    """Whether the same message may be taken later."""
    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    return isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, PermissionError))


def _name(key: str) -> str:
    """`key` as MLflow accepts names: word characters, dots, dashes, spaces, colons; slashes make groups."""
    parts = re.sub(r"[^\w/.\- :]", "_", key).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:_KEY_LENGTH] or "_"


def _now() -> int:
    return int(time.time() * 1000)  # milliseconds
