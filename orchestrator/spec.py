"""A job's configuration: typed, closed, composed of what each floor owns. Knows no defaults of other floors.

Read from YAML, with `key=value` overrides in dotted form. An unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from namm_core.config import NammConfig, from_mapping
from orchestrator import files
from orchestrator.search import SearchConfig
from workers.config import ModelConfig

Kinds = tuple[str, ...]


@dataclass(frozen=True)
class StartSpec:
    """Where the search starts (docs/memory.md 11)."""

    bias: float = 0.0
    """Value of b3 in an otherwise zero theta: 0 is the paper's start, on the boundary; above 0 evicts little."""


@dataclass(frozen=True)
class FitnessSpec:
    """What the search maximises."""

    measure: Literal["score", "logprob", "probability"] = "score"
    """Task score; mean log-probability of the reference answer; or its exponential, which a few hopeless samples
    do not dominate."""
    kept_weight: float = 0.0
    """Subtracted from the fitness: this times the kept fraction beyond `kept_free`."""
    kept_free: float = 0.0
    """Kept fraction that costs nothing."""
    samples: int = 6
    """Samples of each task in a generation, the same ones for all candidates."""
    statistics_samples: int = 8
    """Training prompts of each task from which the feature statistics are collected."""


@dataclass(frozen=True)
class ValidationSpec:
    """How the vector to deploy is chosen."""

    every: int = 5
    """Generations between two looks at the mean."""
    samples: int = 24
    """Validation samples of each trained task."""


@dataclass(frozen=True)
class HeldOutSpec:
    """The final table."""

    samples: int = 600
    """Held-out samples, over all kinds."""
    kept_at_most: float = 1.0
    """Largest kept fraction of the memory on validation samples; a larger one is shifted to it before the table."""
    policies: tuple[str, ...] = ("full", "namm", "oracle", "h2o", "l2", "streaming", "random")
    """Rows of the table."""


@dataclass(frozen=True)
class WorkerSpec:
    """How the work is spread."""

    count: int | None = None
    """Workers; None: one for each CPU of the cluster that a worker's threads allow, or each GPU."""
    threads: int = 1
    """CPU threads of a worker."""
    gpus: float = 0.0
    """GPUs of a worker."""
    candidates_per_call: int = 1
    """Candidates in one batch; 1 is fastest on a CPU."""
    samples_per_call: int = 1
    """Samples in one batch; 1 is fastest on a CPU."""
    timeout: float = 600.0
    """Seconds that one evaluation may take; past them its worker is killed, and another one tries."""
    load_timeout: float = 1800.0
    """Seconds that a worker may take to load the model, fetching it included."""
    patience: float = 3600.0
    """Seconds without any worker after which the job gives up, its state saved."""
    ray_address: str | None = None
    """Ray cluster to join; None: RAY_ADDRESS (set in a submitted job), else `local`, which starts Ray here."""


@dataclass(frozen=True)
class ShareSpec:
    """What is said of the memory where others find it: in its model card, and in MLflow's model registry."""

    license: str = "unknown"
    """Licence of the evolved weights, as the Hub names licences; the base model's may bind it."""
    registered_model: str | None = None
    """Registered model in MLflow of which the memory becomes a version; None: `namm-<name>`."""
    alias: str | None = "champion"
    """Alias of the version registered last; None: none."""

    def __post_init__(self) -> None:
        if self.alias is not None and (not re.fullmatch(r"[\w-]+", self.alias) or self.alias == "latest"):
            raise ValueError(f"alias must be one word, and not latest, which MLflow keeps to itself: {self.alias!r}")
        if self.registered_model is not None and not re.fullmatch(r"[^/:'\"]+", self.registered_model):
            raise ValueError(f"registered_model must have no slash, colon or quote: {self.registered_model!r}")


@dataclass(frozen=True)
class JobSpec:
    """One evolution job."""

    name: str
    """Name of the run; its folder is `runs/<name>`."""
    model: ModelConfig
    tasks: dict[str, Any]
    """`source` and that source's options."""
    train: Kinds
    """Tasks that evolution sees."""
    heldout: Kinds = ()
    """Further tasks that only the final table sees."""
    seed: int = 0
    """Seed of which samples a generation sees, and of the search (added to `search.seed`)."""
    generations: int = 30
    """Generations of the search."""
    memory: NammConfig = field(default_factory=NammConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    start: StartSpec = field(default_factory=StartSpec)
    fitness: FitnessSpec = field(default_factory=FitnessSpec)
    validation: ValidationSpec = field(default_factory=ValidationSpec)
    evaluation: HeldOutSpec = field(default_factory=HeldOutSpec)
    workers: WorkerSpec = field(default_factory=WorkerSpec)
    share: ShareSpec = field(default_factory=ShareSpec)
    storage: str | None = None
    """fsspec URL (s3://..., gs://..., file:///...) of a folder where the run folder is kept twice, so that the job
    survives the loss of its machine; None: the run folder alone."""
    redis_url: str | None = None
    """Prompt cache; None: REDIS_URL, or a private server."""
    mlflow_uri: str | None = None
    """MLflow store; None: `mlflow.db` in the working folder."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name must be a plain folder name, not {self.name!r}")
        if not self.train:
            raise ValueError("train must name at least one task")
        if both := set(self.train) & set(self.heldout):
            raise ValueError(f"{', '.join(sorted(both))}: in train and in heldout; a held-out task is never trained on")
        for name, value in (("generations", self.generations), ("fitness.samples", self.fitness.samples)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")

    @property
    def kinds(self) -> Kinds:
        """All tasks, trained ones first."""
        return self.train + self.heldout

    @property
    def registered_model(self) -> str:
        """Name in MLflow's model registry."""
        return self.share.registered_model or "namm-" + re.sub(r"[/:'\"]", "-", self.name)

    def digest(self) -> str:
        """Names what determines the numbers: not where they are computed, nor how long it goes on."""
        plain = dataclasses.asdict(self)
        for name in ("name", "storage", "redis_url", "mlflow_uri", "workers", "generations", "evaluation", "share"):
            del plain[name]
        workers = self.workers  # the shape of a unit, and threads: both decide in which order sums are formed
        plain["unit"] = [workers.candidates_per_call, workers.samples_per_call, workers.threads]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def read(path: str | Path, overrides: list[str] | None = None) -> JobSpec:
    """Reads a job file; overrides: `dotted.key=value`, the value in YAML. Raises ValueError, one line."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    return parse(text, path, overrides)


def parse(text: str, path: str | Path, overrides: list[str] | None = None) -> JobSpec:
    """As `read`, of a file's text; path: for messages."""
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: expected a mapping of settings")
    for override in overrides or []:
        key, sign, value = override.partition("=")
        if not sign:
            raise ValueError(f"{override!r} is no override: write key=value, such as generations=10")
        *path_to, last = key.split(".")
        at = plain
        for part in path_to:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise ValueError(f"{key}: {part} is no group of settings")
        at[last] = yaml.safe_load(value)
    return from_mapping(JobSpec, plain, Path(path).name)


def write(spec: JobSpec, path: Path) -> None:
    """Writes a job file that `read` reads back to an equal spec."""
    plain = json.loads(json.dumps(dataclasses.asdict(spec)))
    files.write(path, yaml.safe_dump(plain, sort_keys=False))
