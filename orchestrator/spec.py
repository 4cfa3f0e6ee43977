"""A job's configuration: typed, closed, composed of what each floor owns. Knows no defaults of other floors.

Read from YAML, with `key=value` overrides in dotted form. An unknown key is an error that names the nearest one. A
number's range stands beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from namm_core.config import NammConfig, Range, Ranged, Readable, from_fields, from_mapping
from namm_core.scoring import rules, scorer
from orchestrator import addresses, plugins
from orchestrator.fitness_spec import BUDGETS, FitnessSpec
from orchestrator.policy_entries import PolicyEntry, policy_entries
from orchestrator.search import lookup
from orchestrator.search.config import SearchConfig
from orchestrator.search.racing import RacingSpec
from orchestrator.search.stage_rules import RestartSpec, StagePlan, StageSpec, StopSpec, search_of
from orchestrator.storage import files
from workers.config import ModelConfig, PromptConfig

Kinds = tuple[str, ...]

ELSEWHERE = tuple("name storage redis_url mlflow_uri mlflow_experiment mlflow_system_metrics workers plugins".split())
"""Settings of a job that say where things are and decide no number; what plug-ins hold does, wherever they stand."""

TABLE_BUDGET = 0.3
"""Kept fraction of the final table of a memory with a budget, where a job names none."""

BEST = "best"
"""The start that is the best rule on validation samples."""

LONGEST_NAME = 200
"""Bytes of a folder's name: file systems take 255, and evaluations add words to a run's name."""

ROWS = ("full", "namm", "oracle", "h2o", "l2", "streaming", "random")
"""Policies of the final table, where a job names none."""


@dataclass(frozen=True)
class StartSpec:
    """Where the search starts (docs/memory.md 11)."""

    bias: float = 0.0
    """Value of b3, the score's bias, in an otherwise zero theta, or beside a rule: 0 is the paper's start, on the
    boundary; above 0 evicts little. For memories with a threshold."""
    rule: str | None = None
    """A hand-made policy that the memory ranks as in the beginning (`namm_core.scoring.rules`), such as
    `expected_attention`, or `best`, the one that does best on validation samples; None: theta is 0 but for `bias`."""
    theta: tuple[float, ...] | None = None
    """All numbers of the memory in the beginning, in place of a rule: those of another one, say."""


@dataclass(frozen=True)
class ValidationSpec(Ranged):
    """How the vector to deploy is chosen."""

    every: Annotated[int, Range(least=1)] = 5
    """Generations between two looks at the mean."""
    samples: Annotated[int, Range(least=1)] = 24
    """Validation samples of each trained task."""


@dataclass(frozen=True)
class HeldOutSpec(Ranged):
    """The final table."""

    samples: Annotated[int, Range(least=1)] = 600
    """Held-out samples, over all kinds."""
    kept_at_most: Annotated[float, Range(above=0)] = 1.0
    """Largest kept fraction of the memory on validation samples; a larger one is shifted to it before the table."""
    budget: Annotated[float | None, Range(above=0, below=1)] = None
    """Kept fraction of the table, with `memory.selection: budget` and nothing else; None: 0.3."""
    protocol: Literal["streaming", "context"] = "streaming"
    """When memories forget: while they read, or once, before the question (docs/policies.md); evolution streams."""
    policies: tuple[PolicyEntry, ...] = policy_entries(ROWS)
    """Rows of the table: names, or mappings of a name, that policy's options and a fixed size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "policies", policy_entries(self.policies))  # names from code, too
        labels = [entry.label for entry in self.policies]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"policies names {twice} twice")


@dataclass(frozen=True)
class WorkerSpec(Ranged):
    """How the work is spread."""

    count: Annotated[int | None, Range(least=1)] = None
    """Workers; None: one for each CPU of the cluster that a worker's threads allow, or each GPU."""
    threads: Annotated[int, Range(least=1)] = 1
    """CPU threads of a worker."""
    gpus: Annotated[float, Range(least=0)] = 0.0
    """GPUs of a worker."""
    candidates_per_call: Annotated[int, Range(least=1)] = 1
    """Candidates in one batch; 1 is fastest on a CPU."""
    samples_per_call: Annotated[int, Range(least=1)] = 1
    """Samples in one batch; 1 is fastest on a CPU."""
    timeout: float = 600.0
    """Seconds that one evaluation may take; past them its worker is killed, and another one tries."""
    load_timeout: float = 1800.0
    """Seconds that a worker may take to load the model, fetching it included."""
    patience: float = 3600.0
    """Seconds without any worker after which the job gives up, its state saved."""
    ray_address: str | None = None
    """Ray cluster to join; None: RAY_ADDRESS (set in a submitted job), else `local`, which starts Ray here."""
    fused: Literal["auto", True, False] = False
    """Triton's kernels, which have never run on a GPU yet (docs/kernel.md): `on`, `off`, or `auto`; moves last bits."""


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
class JobSpec(Ranged, Readable):
    """One evolution job."""

    name: str
    """Name of the run; its folder is `runs/<name>`."""
    model: ModelConfig
    tasks: dict[str, Any]
    """`source` and that source's options."""
    train: Kinds = ()
    """Tasks that evolution sees; with stages, all of theirs (may be left out)."""
    heldout: Kinds = ()
    """Further tasks that only the final table sees."""
    seed: int = 0
    """Seed of which samples a generation sees, and of the search (added to `search.seed`)."""
    generations: Annotated[int | None, Range(least=1)] = None
    """Generations of the search, at most; None: 30, or with stages the sum of theirs."""
    stages: tuple[StageSpec, ...] = ()
    """Parts of the job, one after the other; none: one, of `train`, `generations` and what else stands here."""
    plugins: tuple[str, ...] = ()
    """Folders or packages that bring policies, scorers, task sources, targets and searches (`orchestrator.plugins`)."""
    target: str = "language"
    """What kind of model it is, and how it is scored: a module of `workers.targets`."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    memory: NammConfig = field(default_factory=NammConfig)
    search: SearchConfig = field(default_factory=lookup.default)
    start: StartSpec = field(default_factory=StartSpec)
    fitness: FitnessSpec = field(default_factory=FitnessSpec)
    stop: StopSpec = field(default_factory=StopSpec)
    restarts: RestartSpec = field(default_factory=RestartSpec)
    racing: RacingSpec = field(default_factory=RacingSpec)
    validation: ValidationSpec = field(default_factory=ValidationSpec)
    evaluation: HeldOutSpec = field(default_factory=HeldOutSpec)
    workers: WorkerSpec = field(default_factory=WorkerSpec)
    share: ShareSpec = field(default_factory=ShareSpec)
    storage: str | None = None
    """fsspec URL (s3://..., file:///...) of a folder where the run folder is kept twice; None: the run folder alone."""
    redis_url: str | None = None
    """Prompt cache; None: REDIS_URL, or a private server."""
    mlflow_uri: str | None = None
    """MLflow store; None: `mlflow.db` in the working folder."""
    mlflow_experiment: str = "namm"
    """MLflow experiment that the run belongs to; made where there is none."""
    mlflow_system_metrics: bool = False
    """Whether MLflow gets the load of the job's machine, too, which its pages show in front of all else."""

    @classmethod
    def from_plain(cls, value: Any, where: str) -> JobSpec:
        """The job, its plug-ins added before anything that they may bring is looked up. Raises ValueError, one line."""
        given = value.get("plugins", ()) if isinstance(value, Mapping) else ()
        if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
            raise ValueError(f"{where}.plugins: expected a list of folders or packages, found {given!r}")
        try:
            plugins.add(given)
        except ValueError as error:
            raise ValueError(f"{where}.plugins: {error}") from None
        if isinstance(value, Mapping) and "search" in value:  # which options there are depends on the algorithm
            value = {**value, "search": lookup.read(value["search"], f"{where}.search")}
        return from_fields(cls, value, where)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_folder("name", self.name)
        if not self.mlflow_experiment.strip() or len(self.mlflow_experiment) > 500:
            raise ValueError("mlflow_experiment must have 1 to 500 letters; leave it out for namm")
        self._complete_stages()
        self._complete_budgets()
        self._check_rule()
        if not self.train:
            raise ValueError("train must name at least one task")
        for number, stage in enumerate(self.plan):  # an odd population of mirrored pairs, a task named twice
            search_of(self.search, self.seed, number, stage, 0, 1.0)
        if both := set(self.train) & set(self.heldout):
            raise ValueError(f"{', '.join(sorted(both))}: in train and in heldout; a held-out task is never trained on")
        if self.restarts.count and self.stop.patience is None and self.stop.sigma_below is None:
            raise ValueError("restarts need stop.patience or stop.sigma_below: nothing else ends a search early")
        if self.racing.enabled and self.search.elite >= self.search.population:
            raise ValueError(
                f"racing has nobody to drop: search.algorithm {self.search.algorithm} learns from the rank of every "
                "candidate; leave racing off"
            )

    def _complete_stages(self) -> None:
        """Fills in what follows from the stages: their names, `train` and `generations`."""
        names = [stage.name or f"stage{i}" for i, stage in enumerate(self.stages, 1)]
        for name in names:
            _check_folder("stages: name", name)
        train = tuple(dict.fromkeys(task for stage in self.stages for task in stage.train)) or self.train
        generations = sum(stage.generations for stage in self.stages) or 30
        if self.stages:
            if self.train and set(self.train) != set(train):
                raise ValueError(f"train names other tasks than the stages ({', '.join(train)}): leave it out")
            if self.generations not in (None, generations):
                raise ValueError(
                    f"generations is {self.generations}, the stages' sum {generations}: set it for each stage "
                    "(stages.0.generations=...)"
                )
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"stages: each needs a plain folder name of its own, not {name!r}")
        named = tuple(replace(stage, name=name) for stage, name in zip(self.stages, names, strict=True))
        object.__setattr__(self, "stages", named)  # a frozen dataclass's own way
        object.__setattr__(self, "train", train)
        if self.generations is None:
            object.__setattr__(self, "generations", generations)

    def _complete_budgets(self) -> None:
        """Fills in the sizes of a memory with a budget, and refuses what such a memory, or one without, has not."""
        fitness, evaluation = self.fitness, self.evaluation
        if self.memory.selection != "budget":
            for name, given in {"fitness.budgets": fitness.budgets, "evaluation.budget": evaluation.budget}.items():
                if given is not None:
                    raise ValueError(
                        f"{name} needs memory.selection budget: with {self.memory.selection} the memory's own "
                        "threshold decides how much it keeps"
                    )
            return
        for name, given in {
            "start.bias": self.start.bias,
            "evaluation.kept_at_most": evaluation.kept_at_most - 1,
        }.items():
            if given:
                raise ValueError(f"{name} is for memories with a threshold: with memory.selection budget leave it out")
        if fitness.budgets is None:
            object.__setattr__(self, "fitness", replace(fitness, budgets=BUDGETS))
        if evaluation.budget is None:
            object.__setattr__(self, "evaluation", replace(evaluation, budget=TABLE_BUDGET))

    def _check_rule(self) -> None:
        if self.start.theta is not None:
            wanted = scorer.num_parameters(self.memory)
            if self.start.rule is not None or self.start.bias:
                raise ValueError("start.theta says all numbers: leave out start.rule and start.bias")
            if len(self.start.theta) != wanted or not all(map(math.isfinite, self.start.theta)):
                raise ValueError(f"start.theta must be {wanted} finite numbers, not {len(self.start.theta)}")
        elif self.start.rule == BEST:
            if not rules.rules(self.memory):
                raise ValueError(f"start.rule {BEST}: no rule is a point of this memory's space; add memory.features")
        elif self.start.rule is not None:
            try:
                rules.start(self.memory, self.start.rule)
            except ValueError as error:
                raise ValueError(f"start.{error}") from None

    @property
    def plan(self) -> tuple[StagePlan, ...]:
        """The stages with nothing left open; one where none are given."""
        stages = self.stages or (StageSpec(self.train, "stage1", self.generations or 30),)
        return tuple(
            StagePlan(
                name=stage.name or "",
                train=stage.train,
                generations=stage.generations,
                samples=self.fitness.samples if stage.samples is None else stage.samples,
                population=self.search.population if stage.population is None else stage.population,
                sigma=stage.sigma,
                sigma0=self.search.sigma0 if stage.sigma0 is None else stage.sigma0,
                part=stage.part,
                variant=stage.variant,
            )
            for stage in stages
        )

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
        said = plain(self)
        for name in (*ELSEWHERE, "generations", "evaluation", "share"):
            del said[name]
        for budget in ("evaluations", "hours"):
            del said["stop"][budget]
        if self.stages:  # how long the last one goes on, likewise
            del said["stages"][-1]["generations"]
        workers = self.workers  # the shape of a unit, and threads: both decide in which order sums are formed
        said["unit"] = [workers.candidates_per_call, workers.samples_per_call, workers.threads]
        if workers.fused:
            said["fused"] = workers.fused
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _check_folder(what: str, name: str) -> None:
    if not name or "/" in name or name.startswith(".") or not name.isprintable():
        raise ValueError(f"{what} must be a plain folder name, not {name!r}")
    if (size := len(name.encode())) > LONGEST_NAME:
        raise ValueError(f"{what} has {size} bytes, at most {LONGEST_NAME} are allowed: {name[:20]!r}...")


def read(path: str | Path, overrides: list[str] | None = None) -> JobSpec:
    """Reads a job file; overrides: `dotted.key=value`, the value in YAML. Raises ValueError, one line."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text in UTF-8 (byte {error.start})") from None
    return parse(text, path, overrides)


def parse(text: str, path: str | Path, overrides: list[str] | None = None) -> JobSpec:
    """As `read`, of a file's text; path: for messages."""
    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path}: expected a mapping of settings")
    for override in overrides or []:
        key, sign, value = override.partition("=")
        if not sign:
            raise ValueError(f"{override!r} is no override: write key=value, such as generations=10")
        *path_to, last = key.split(".")
        at = said
        for part in path_to:
            at = _inner(at, part, key)
            if not isinstance(at, dict | list):
                raise ValueError(f"{key}: {part} is no group of settings")
        if isinstance(at, list):
            raise ValueError(f"{key}: name a setting of its item {last}, such as {key}.generations")
        try:
            at[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(
                f"{override!r} is no YAML: put its value in quotes, twice for the shell ('{key}=\"VALUE\"')"
            ) from None
    return from_mapping(JobSpec, said, Path(path).name)


def _inner(at: dict | list, part: str, key: str) -> Any:
    """The group `part` of a group of settings, or of a list by its number from 0."""
    if isinstance(at, dict):
        return at.setdefault(part, {})
    if not (part.isdigit() and int(part) < len(at)):
        raise ValueError(f"{key}: {part} is no item of a list of {len(at)}, counted from 0")
    return at[int(part)]


def write(settings: Any, path: Path) -> None:
    """Writes a job, or another dataclass of settings, as YAML from which an equal one is read, but for passwords."""
    files.write(path, yaml.safe_dump(addresses.kept(plain(settings)), sort_keys=False))


def plain(settings: Any) -> Any:
    """Settings as YAML and JSON have them: mappings, lists, texts and numbers."""
    if isinstance(settings, PolicyEntry):
        return plain(settings.plain)
    if dataclasses.is_dataclass(settings):
        return {field.name: plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {key: plain(value) for key, value in settings.items()}
    return [plain(value) for value in settings] if isinstance(settings, list | tuple) else settings
