"""What a job works with: its run folder, prompt cache, workers and MLflow run, opened in order and always closed.

Knows nothing of searches and comparisons, nor of anything else that is done with them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import namm_core
import workers
from orchestrator import addresses, spec
from orchestrator.evolution.samples import Size, endless, statistics_samples
from orchestrator.report.progress import Display
from orchestrator.services.redis_server import prompt_redis
from orchestrator.spec import JobSpec
from orchestrator.storage import files
from orchestrator.storage import mirror as mirrors
from orchestrator.storage.journal import Journal
from orchestrator.storage.mirror import Mirror
from orchestrator.storage.reserved import Reserved
from orchestrator.storage.run_folder import RUNS
from orchestrator.tracking.store import check_mlflow, store_of
from workers.config import EvaluatorConfig
from workers.masking import masked_url
from workers.plugins import folders
from workers.tasks.loading import load_tasks
from workers.unit import SampleRef

if TYPE_CHECKING:  # both are slow to import, and a job that is refused need not wait for that
    from orchestrator.dispatch.dispatcher import Dispatcher
    from orchestrator.tracking.tracker import Tracker

RESUME_PATIENCE = 60.0
"""Seconds that a resumed job waits for its MLflow server."""


@dataclass(frozen=True)
class Workplace:
    """What a job works with, while it is open."""

    folder: Path
    """The run folder, reserved for this job."""
    dispatcher: Dispatcher
    """Its workers, and the journal."""
    tracker: Tracker
    """Its MLflow run."""
    mirror: Mirror | None
    """What keeps the run folder at the job's storage URL; None where it has none."""


def checked(
    job: JobSpec, policies: Sequence[str] = (), samples: Mapping[str, Sequence[SampleRef]] | None = None
) -> JobSpec:
    """The job, with its model pinned to the weights that are there now.

    policies: names of those that will be compared; samples: those that will be asked for, by the name of the setting
    that says how many. Raises ValueError, one line, for a model or task that is not there, and for policies or samples
    that the tasks cannot serve.
    """
    from workers import models, targets  # imports torch

    targets.find(job.target).check(job.model)
    job = dataclasses.replace(job, model=models.pinned(job.model))  # what "main" means must not change on the way
    tasks = load_tasks(job.tasks)
    for task in job.kinds:
        if task not in tasks.tasks:
            raise ValueError(f"unknown task {task!r} in train or heldout; tasks of this set: {', '.join(tasks.tasks)}")
        tasks.fingerprint(task)  # reads all of its records: a bad one is found before anything is started
    for task in job.train:
        tasks.size(task, "train")
    if "oracle" in policies and not tasks.locates:
        raise ValueError("policies: oracle needs tasks that say where their answers stand: leave it out")
    if job.evaluation.protocol == "context" and not tasks.separates:
        raise ValueError(
            f"evaluation.protocol context needs tasks that say where their question begins, which source "
            f"{job.tasks.get('source')} does not: set it to streaming"
        )
    for setting, refs in (samples or {}).items():
        for task, split, index in refs:
            size = None if split == "train" else tasks.size(task, split)
            if size is not None and index >= size:
                raise ValueError(f"{setting} asks for more {split} samples than the {size} that {task} has: lower it")
    return job


@contextmanager
def opened(
    job: JobSpec, resume: bool, display: Display, settings: tuple[str, Any], tags: dict[str, str], purpose: str = ""
) -> Iterator[Workplace]:
    """Opens what a job that `checked` returned works with, for the length of the block.

    settings: name and content (a dataclass) of the file in the run folder that says what was asked for; tags: labels
    of the MLflow run; purpose: what the journal's scores and facts depend on besides the job. Raises ValueError, one
    line, for bad input, before anything is written.
    """
    from orchestrator.dispatch.ray_address import address_of, check_ray
    from workers import models

    folder = RUNS / job.name
    store = store_of(addresses.given(job.mlflow_uri, "mlflow_uri", "MLFLOW_TRACKING_URI"), RUNS)
    redis = addresses.given(job.redis_url, "redis_url", "REDIS_URL")
    storage = addresses.given(job.storage, "storage")
    ray_address = address_of(addresses.given(job.workers.ray_address, "ray_address", "RAY_ADDRESS"))
    check_mlflow(store, RESUME_PATIENCE if resume else 5.0)
    check_ray(ray_address)
    if storage and not resume and mirrors.exists(storage):
        raise ValueError(f"{masked_url(storage)} holds a run: continue it with --resume, or choose another storage")
    with ExitStack() as stack:
        redis_url = stack.enter_context(prompt_redis(redis, needed=not resume))
        reserved = stack.enter_context(Reserved(folder, fresh=not resume))
        from orchestrator.dispatch.dispatcher import Dispatcher
        from orchestrator.dispatch.ray_connection import connected
        from orchestrator.dispatch.ray_fleet import RayFleet
        from orchestrator.tracking.tracker import Tracker, check_experiment

        check_experiment(store, job.mlflow_experiment)
        weights = models.weights_digest(job.model.path, job.model.revision, job.model.gguf)

        def start_ray() -> None:
            display.status("starting Ray and the workers")
            cpus = None if job.workers.count is None else job.workers.count * job.workers.threads
            stack.enter_context(connected(ray_address, f"namm-{job.name}", cpus))

        if not resume:  # nothing of a job that Ray refuses is left at its storage
            start_ray()
        mirror = stack.enter_context(Mirror(folder, storage)) if storage else None
        journal = stack.enter_context(closing(Journal(folder, purpose + _identity(job, weights))))
        spec.write(settings[1], folder / settings[0])
        if resume:  # whose journal may be another job's: that is said before anything is started
            start_ray()
        fleet = stack.enter_context(closing(RayFleet(evaluator_config(job, redis_url), job.workers)))
        dispatcher = Dispatcher(fleet, job.workers, journal)
        params = dataclasses.asdict(settings[1])
        tracker = Tracker(
            store,
            job.mlflow_experiment,
            job.name,
            params,
            tags,
            run_id=_mlflow_run(folder),
            system_metrics=job.mlflow_system_metrics,
        )
        files.write_json(folder / "mlflow.json", {"uri": masked_url(store), **tracker.ids})
        reserved.keep()
        display.begun = True
        finished = False
        try:
            yield Workplace(folder, dispatcher, tracker, mirror)
            finished = True
        finally:
            tracker.finish("FINISHED" if finished else "KILLED")


def evaluator_config(job: JobSpec, redis_url: str | None = None) -> EvaluatorConfig:
    """What a job's workers are made of. redis_url: of the prompt cache."""
    # The folders' whole paths: workers do not start in the folder that this process started in.
    plugins = tuple(str(Path(name).resolve()) if Path(name).is_dir() else name for name in job.plugins)
    return EvaluatorConfig(
        job.model,
        job.tasks,
        job.memory,
        job.workers.threads,
        redis_url,
        job.prompt,
        target=job.target,
        plugins=plugins,
        fused=job.workers.fused,
    )


def statistics(
    job: JobSpec, dispatcher: Dispatcher, display: Display, size: Size = endless
) -> tuple[np.ndarray, np.ndarray, float]:
    """The frozen feature statistics: mean and variance, (features,) float32 each, and the count behind them.

    Collected once in a job's life and kept in its journal, since another machine's would differ in bits. size: how many
    samples the tasks have.
    """

    def collect() -> list:
        display.status("collecting feature statistics with the full cache")
        mean, var, count = dispatcher.ask("statistics", statistics_samples(job, size))
        return [mean.tolist(), var.tolist(), float(count)]

    mean, var, count = dispatcher.journal.fact("statistics", collect)
    return np.array(mean, np.float32), np.array(var, np.float32), count


def prepare(dispatcher: Dispatcher, samples: Sequence[SampleRef], display: Display) -> None:
    """Renders and tokenises the prompts of all samples, each once in a cluster, before any of them is evaluated."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done = min(done + more, len(samples))
        display.preparing(done, len(samples))

    dispatcher.prepare(samples, count)


def _identity(job: JobSpec, weights: str) -> str:
    """What a journal's scores depend on: configuration, weights, the tasks' data, and code, plug-ins' included."""
    code = hashlib.sha256()
    for package in (namm_core, workers):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            code.update(file.read_bytes())
    for folder in folders(job.plugins):  # wherever they stand
        for file in sorted(folder.rglob("*.py")):
            code.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    tasks = load_tasks(job.tasks)
    code.update("\n".join(tasks.fingerprint(task) for task in job.kinds).encode())
    return f"{job.digest()}-{weights[:16]}-{code.hexdigest()[:16]}"


def _mlflow_run(folder: Path) -> str | None:
    """The MLflow run that the job had before; None where there is none."""
    try:
        return json.loads((folder / "mlflow.json").read_text("utf-8"))["run_id"]
    except (OSError, ValueError, KeyError):
        return None
