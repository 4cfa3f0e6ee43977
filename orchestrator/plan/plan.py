"""What a job will take, computed from its configuration alone: requests, tokens, GPU memory, GPU hours, storage.

Loads no weights and no data, starts nothing, fetches nothing, writes nothing. Puts together shapes (`model_shapes`),
formulas (`cost`) and where values come from (`provenance`); how a plan is printed is in `page`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from namm_core.scoring import scorer
from orchestrator.evolution.look import LOOKED_AT
from orchestrator.plan import cost as sizing
from orchestrator.plan import model_shapes as shapes
from orchestrator.plan import provenance as origin
from orchestrator.plan.provenance import Value
from orchestrator.spec import JobSpec
from workers.tasks.loading import load_tasks

KEPT = 0.3
"""Kept fraction, as stored, that is assumed if none is given."""
ANSWER = 128
"""Limit of an answer, in tokens, if the task set has none: LongBench's for questions about one text."""
FULL = "full"


@dataclass(frozen=True)
class Assumed:
    """What no configuration says, and a plan needs."""

    tflops: float = sizing.Gpu.tensor
    """Peak TFLOP/s of the GPU in bfloat16, dense; the default is an H100 SXM's."""
    kept: float = KEPT
    """Kept fraction of the memory, as stored, right after an update."""
    tokens: int | None = None
    """Tokens of a prompt; None: the longest prompt that the task set allows."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tflops) and self.tflops > 0):
            raise ValueError(f"--tflops must be above 0, not {self.tflops}")
        if not 0 < self.kept <= 1:
            raise ValueError(f"--kept must lie above 0 and at most at 1, not {self.kept}")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"--tokens must be at least 1, not {self.tokens}")


@dataclass(frozen=True)
class Stage:
    """What a stage takes; fields are None if the model's shape or the prompts' length is not known."""

    name: str
    tasks: tuple[str, ...]
    generations: int
    population: int
    samples: int
    """Samples of each task in a generation."""
    looks: int
    """How often the validation samples are evaluated."""
    validation: int
    """Requests of one such look."""
    tokens: int | None = None
    """Tokens of a generation's prompts, once for each request."""
    seconds: float | None = None
    """GPU seconds of a generation."""
    look_seconds: float | None = None
    """GPU seconds of a look."""

    @property
    def requests(self) -> int:
        """Requests of a generation: candidates, their mean and the full cache, on each sample of each task."""
        return (self.population + 2) * self.samples * len(self.tasks)

    @property
    def all_requests(self) -> int:
        """Requests of the stage."""
        return self.generations * self.requests + self.looks * self.validation

    @property
    def hours(self) -> float | None:
        """GPU hours of the stage."""
        if self.seconds is None or self.look_seconds is None:
            return None
        return (self.generations * self.seconds + self.looks * self.look_seconds) / 3600


@dataclass(frozen=True)
class Sized:
    """Memory and time on the GPUs of a job whose model and prompts are known."""

    full: sizing.Memory
    """A worker with a plain full cache."""
    memory: dict[float, sizing.Memory]
    """A worker with a memory, by kept fraction; 1 is the full cache with a memory's state."""
    table_hours: float
    """GPU hours of the held-out table."""
    worst_hours: float
    """GPU hours of the whole job if every memory kept everything."""


@dataclass(frozen=True)
class Plan:
    """Everything that is printed."""

    job: JobSpec
    assumed: Assumed
    gpu: sizing.Gpu
    model: sizing.Model | None
    shape: str
    """Where the model's shape was found, or what is missing."""
    tokens: int | None
    """Tokens of a prompt."""
    length: str
    """Where the number of tokens comes from, or what is missing."""
    limits: dict[str, int]
    """Most tokens of an answer, by task, as far as the task set says; `ANSWER` for the others."""
    stages: tuple[Stage, ...]
    values: tuple[Value, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    sized: Sized | None = None
    """What depends on the model's shape and the prompts' length; None where one of them is not known."""

    @property
    def table(self) -> int:
        """Requests of the held-out table."""
        return self.job.evaluation.samples * len(self.job.evaluation.policies)

    @property
    def requests(self) -> int:
        """Requests of the whole job, the held-out table included."""
        return sum(stage.all_requests for stage in self.stages) + self.table

    @property
    def hours(self) -> float | None:
        """GPU hours of the whole job."""
        if self.sized is None:
            return None
        return sum(stage.hours or 0.0 for stage in self.stages) + self.sized.table_hours

    @property
    def gpus(self) -> float | None:
        """GPUs that the job asks for; None if it does not say how many workers it wants, or they have none."""
        workers = self.job.workers
        return None if workers.count is None or not workers.gpus else workers.count * workers.gpus

    @property
    def prediction(self) -> int:
        """Bytes of an answer's text, at most, at 4 bytes a token: a mean over the tasks."""
        return round(4 * _mean_limit(self.limits, self.job.kinds))

    @property
    def theta(self) -> int:
        """Bytes of a memory's parameters, float32."""
        return 4 * scorer.num_parameters(self.job.memory)

    @property
    def journal(self) -> int | None:
        """Bytes of the journal at the end."""
        return None if self.model is None else self.requests * sizing.journal_bytes(self.model, self.prediction)

    @property
    def prompts(self) -> int | None:
        """Bytes of the largest generation's prompts in Redis."""
        if self.tokens is None:
            return None
        one = sizing.prompt_bytes(sizing.Job(tokens=self.tokens))
        return one * max(stage.samples * len(stage.tasks) for stage in self.stages)


def plan(job: JobSpec, text: str, overrides: list[str] | None = None, assumed: Assumed | None = None) -> Plan:
    """The plan of a job; text: its file, for the sources of values. Raises ValueError, one line, for bad input."""
    assumed = assumed or Assumed()
    model, shape = shapes.find(job.model)
    tokens, length = _length(job, assumed)
    limits, missing = _tasks(job)
    if model is None:
        missing.append(f"model shape: {shape}; memory, hours and journal are left out")
    if tokens is None:
        missing.append(f"prompt length: {length}; tokens, memory and hours are left out")
    tensor = assumed.tflops if job.model.dtype != "float32" else min(assumed.tflops, sizing.Gpu.scalar)
    gpu = sizing.Gpu(tensor=tensor)
    one = None
    if tokens is not None:
        rows = job.workers.candidates_per_call * job.workers.samples_per_call
        one = sizing.Job(tokens=tokens, kept=assumed.kept, rows=rows, memory=job.memory)
    made = Plan(
        job=job,
        assumed=assumed,
        gpu=gpu,
        model=model,
        shape=shape,
        tokens=tokens,
        length=length,
        limits=limits,
        stages=tuple(_sized(stage, limits, model, one, gpu) for stage in _stages(job)),
        values=tuple(origin.values(job, text, overrides)),
        missing=tuple(missing),
        notes=tuple(_notes(job)),
    )
    if one is None or model is None:
        return made
    whole = dataclasses.replace(one, kept=1.0)
    worst = [_sized(stage, limits, model, whole, gpu) for stage in _stages(job)]
    sized = Sized(
        full=_plain(sizing.memory(model, whole)),
        memory={k: sizing.memory(model, dataclasses.replace(one, kept=k)) for k in sorted({assumed.kept, 1.0})},
        table_hours=_table_hours(job, limits, model, one, gpu),
        worst_hours=sum(stage.hours or 0.0 for stage in worst) + _table_hours(job, limits, model, whole, gpu),
    )
    return dataclasses.replace(made, sized=sized)


def _stages(job: JobSpec) -> list[Stage]:
    """The job's stages; a job without stages is one stage."""
    every, seen = job.validation.every, LOOKED_AT * job.validation.samples
    return [
        Stage(
            name=stage.name,
            tasks=stage.train,
            generations=stage.generations,
            population=stage.population,
            samples=stage.samples,
            looks=math.ceil(stage.generations / every),
            validation=seen * len(stage.train),
        )
        for stage in job.plan
    ]


def _sized(
    stage: Stage, limits: Mapping[str, int], model: sizing.Model | None, one: sizing.Job | None, gpu: sizing.Gpu
) -> Stage:
    """The stage with its tokens and seconds, as far as model and prompts are known."""
    if one is None:
        return stage
    one = dataclasses.replace(one, answer=_mean_limit(limits, stage.tasks))
    stage = dataclasses.replace(stage, tokens=stage.requests * one.tokens)
    if model is None:
        return stage
    samples = stage.samples * len(stage.tasks)
    job = dataclasses.replace(one, population=stage.population, samples=samples)
    look = _seconds(stage.validation // LOOKED_AT, ("namm",) * (LOOKED_AT - 1) + (FULL,), model, one, gpu)
    return dataclasses.replace(stage, seconds=sizing.generation_seconds(model, job, gpu, gpus=1), look_seconds=look)


def _table_hours(
    job: JobSpec, limits: Mapping[str, int], model: sizing.Model, one: sizing.Job, gpu: sizing.Gpu
) -> float:
    one = dataclasses.replace(one, answer=_mean_limit(limits, job.kinds))
    names = tuple(entry.name for entry in job.evaluation.policies)
    return _seconds(job.evaluation.samples, names, model, one, gpu) / 3600


def _seconds(samples: int, policies: Sequence[str], model: sizing.Model, one: sizing.Job, gpu: sizing.Gpu) -> float:
    """GPU seconds of policies on samples; each but the full cache is assumed to take as long as a NAMM."""
    full = policies.count(FULL) * sizing.full_seconds(model, one, gpu)
    return samples * (full + (len(policies) - policies.count(FULL)) * sizing.seconds(sizing.work(model, one), gpu))


def _plain(memory: sizing.Memory) -> sizing.Memory:
    """The same without a memory: no state, and no attention matrices, since the kernel is fused."""
    return dataclasses.replace(memory, state=0.0, attention=0.0, decode=memory.cache)


def _length(job: JobSpec, assumed: Assumed) -> tuple[int | None, str]:
    """Tokens of the longest prompt, and where they come from."""
    longest = "the longest prompt, so times are upper bounds"
    if assumed.tokens is not None:
        return assumed.tokens, "--tokens"
    if isinstance(job.tasks.get("tokens"), int):
        return job.tasks["tokens"], f"tasks.tokens: {longest}"
    if job.prompt.max_tokens is not None:
        return job.prompt.max_tokens, f"prompt.max_tokens: {longest}"
    return None, "nothing bounds it (prompt.max_tokens); give --tokens"


def _tasks(job: JobSpec) -> tuple[dict[str, int], list[str]]:
    """Most tokens of an answer by task, as far as the task set knows them without its data; and what is unknown."""
    try:
        found = load_tasks(dict(job.tasks))
    except ValueError as error:
        return {}, [f"tasks: {str(error).splitlines()[0]}"]
    unknown = [task for task in job.kinds if task not in found.tasks]
    missing = [f"tasks: {task} is none of this set's ({', '.join(found.tasks)})" for task in unknown]
    limits = {task: found.answer_limit(task) for task in job.kinds if task not in unknown}
    return {task: most for task, most in limits.items() if most is not None}, missing


def _mean_limit(limits: Mapping[str, int], tasks: tuple[str, ...]) -> float:
    return sum(limits.get(task, ANSWER) for task in tasks) / len(tasks)


def _notes(job: JobSpec) -> list[str]:
    """Why the job may take more or less than the plan says."""
    notes = []
    if job.racing.enabled:
        notes.append("racing ends bad candidates early: the plan counts them in full")
    stop = {name: value for name, value in dataclasses.asdict(job.stop).items() if value is not None}
    if stop:
        rules = ", ".join(f"stop.{name} {value:g}" for name, value in stop.items())
        notes.append(f"it may end earlier: {rules}")
    if job.start.rule is not None:
        notes.append(f"start.rule {job.start.rule}: before each stage a look of a few policies at validation samples")
    if job.restarts.count:
        growth = job.restarts.factor**job.restarts.count
        notes.append(f"restarts: up to {job.restarts.count} of a stage, whose population grows up to {growth:g} times")
    if job.memory.scorer != "bam":
        notes.append(f"memory.scorer is {job.memory.scorer}: FLOP and bytes of scoring are counted as those of bam")
    notes.append("a full-cache request that came before is in the journal and is not made again")
    if not job.workers.gpus:
        notes.append("workers.gpus is 0: this job runs on CPUs; memory and hours are those of a GPU")
    return notes
