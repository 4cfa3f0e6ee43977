"""A plan as tables of 80 columns. Knows how numbers are written; computes nothing but sums and units."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan import cost as sizing
from orchestrator.plan.plan import ANSWER, Plan, Sized

WIDTH = 80
UNKNOWN = "?"


def page(plan: Plan) -> RenderableType:
    """The whole plan, for a console."""
    parts: list[RenderableType] = [*_head(plan), "", _requests(plan), *_arithmetic(plan)]
    if plan.sized is not None:
        parts += ["", _memory(plan, plan.sized), "", _hours(plan, plan.sized), *_formula(plan)]
    parts += ["", _storage(plan), "", _given(plan), "", _defaults(plan)]
    if plan.missing:
        parts += ["", *_list("Missing", plan.missing)]
    if plan.notes:
        parts += ["", *_list("Not counted", plan.notes)]
    return Group(*[Text(part) if isinstance(part, str) else part for part in parts])


def _head(plan: Plan) -> Iterator[str]:
    job, model = plan.job, plan.model
    yield f"Plan of {job.name}. Nothing was loaded, started, fetched or written."
    yield ""
    yield f"model    {job.model.path}, {job.model.dtype}, ntk_alpha {job.model.ntk_alpha:g}"
    if model is not None:
        yield (
            f"         {model.layers} layers, hidden {model.hidden}, {model.heads}/{model.kv_heads} heads of "
            f"{model.head}, MLP {model.mlp},"
        )
        yield f"         vocabulary {model.vocabulary:,}: {_short(model.parameters)} parameters"
    yield f"  from   {plan.shape}"
    yield f"tasks    {job.tasks.get('source', UNKNOWN)}; prompts of {_number(plan.tokens)} tokens"
    yield f"  from   {plan.length}"
    limits = sorted({plan.limits.get(task, ANSWER) for task in job.kinds})
    yield f"answers  at most {', '.join(map(str, limits))} tokens, by task"
    yield "  from   " + ("the task set" if plan.limits else "assumed: the task set has no list of limits")
    yield f"search   {job.search.summary}"


def _requests(plan: Plan) -> Table:
    table = _table("Requests of a generation: candidates + mean + full cache, x samples x tasks")
    table.add_column("stage", no_wrap=True)
    table.add_column("tasks", overflow="fold")
    for name in ("generations", "requests", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        tokens = UNKNOWN if stage.tokens is None else _short(stage.tokens)
        table.add_row(stage.name, ", ".join(stage.tasks), f"{stage.generations:,}", f"{stage.requests:,}", tokens)
    return table


def _arithmetic(plan: Plan) -> Iterator[str]:
    job = plan.job
    for s in plan.stages:
        yield f"  {s.name}: ({s.population} + 1 + 1) x {s.samples} x {len(s.tasks)} = {s.requests:,}"
    looks, each = sum(s.looks for s in plan.stages), _each([s.validation for s in plan.stages])
    yield f"  validation: every {job.validation.every} generations, {looks} looks, {each} requests each"
    policies = len(job.evaluation.policies)
    yield f"  held-out table: {job.evaluation.samples:,} samples x {policies} policies = {plan.table:,}"
    yield f"  whole job: {plan.requests:,} requests"


def _memory(plan: Plan, sized: Sized) -> Table:
    rows = plan.job.workers.candidates_per_call * plan.job.workers.samples_per_call
    unit, size = ("GiB", sizing.GIB) if sized.full.total >= sizing.GIB else ("MiB", 2**20)
    table = _table(f"GPU memory of a worker, {unit}, {rows} row(s) of {plan.tokens:,} tokens")
    table.add_column("", no_wrap=True)
    for name in ("weights", "keys, values", "state", "activations", "together"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, m in [("full cache", sized.full), *((f"NAMM, kept {k:.2f}", m) for k, m in sized.memory.items())]:
        activations = max(m.attention, m.mlp, m.decode)
        row = (m.weights, m.cache, m.state, activations, m.total)
        table.add_row(name, *(f"{part / size:.1f}" for part in row))
    return table


def _hours(plan: Plan, sized: Sized) -> Table:
    table = _table(f"GPU time, computed and not measured, at kept {plan.assumed.kept:.2f}")
    table.add_column("stage", no_wrap=True)
    for name in ("a generation", "generations", "validation", "together"):
        table.add_column(name, justify="right", no_wrap=True)
    for s in plan.stages:
        one, look = (s.seconds or 0.0) / 3600, (s.look_seconds or 0.0) / 3600
        table.add_row(s.name, *map(_time, (one, s.generations * one, s.looks * look, s.hours)))
    table.add_row("held-out table", "", "", "", _time(sized.table_hours))
    table.add_section()
    table.add_row("whole job", "", "", "", _time(plan.hours))
    table.add_row("the same with everything kept", "", "", "", _time(sized.worst_hours))
    return table


def _formula(plan: Plan) -> Iterator[str]:
    gpu, assumed = plan.gpu, plan.assumed
    yield "  seconds of a request = (FLOP of linear layers and attention)"
    yield f"                           / ({gpu.of_peak:g} x {gpu.tensor:g} TFLOP/s)"
    yield f"                       + FLOP of the memory / ({gpu.of_peak:g} x {gpu.scalar:g} TFLOP/s)"
    yield f"                       + bytes moved / ({gpu.of_bandwidth:g} x {gpu.bandwidth:g} TB/s)"
    yield f"  assumed: --tflops {assumed.tflops:g}, --kept {assumed.kept:g}; the rest is an H100 SXM's data sheet,"
    yield f"  of which {gpu.of_peak:.0%} of TFLOP/s and {gpu.of_bandwidth:.0%} of TB/s are reached"
    yield "  all terms: docs/operations.md, Sizing; code: orchestrator.plan.cost"
    if plan.gpus and plan.hours is not None:
        yield f"  on {plan.gpus:g} GPUs (workers.count x workers.gpus), none idle: {_time(plan.hours / plan.gpus)}"


def _storage(plan: Plan) -> Table:
    table = _table("Storage")
    table.add_column("what", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("where")
    table.add_row("journal, at the end", _bytes(plan.journal), "run folder, on the head")
    table.add_row("prompts of a generation", _bytes(plan.prompts), "Redis (namm head: 1 GB, oldest leave)")
    weights = None if plan.model is None else plan.model.bytes * plan.model.parameters
    table.add_row("the model's files", _bytes(weights), "HF_HOME of each machine, or the model's folder")
    table.add_row("a memory", _bytes(plan.theta), "run folder, one a stage, and MLflow")
    return table


def _given(plan: Plan) -> Table:
    table = _table("Where values come from")
    table.add_column("setting", overflow="fold", max_width=30)
    table.add_column("value", overflow="fold", max_width=18)
    table.add_column("source", overflow="fold")
    for value in plan.values:
        if value.given:
            table.add_row(value.key, _plain(value.value), Text(value.source))
    return table


def _defaults(plan: Plan) -> Table:
    table = _table("Defaults, by the class that has them")
    table.add_column("default of", no_wrap=True)
    table.add_column("values", overflow="fold")
    groups: dict[str, list[str]] = {}
    for value in plan.values:
        if not value.given:
            name = value.key.rpartition(".")[2]
            text = f"{name} {_plain(value.value)}"
            group = groups.setdefault(value.source.removeprefix("default of "), [])
            if text not in group:
                group.append(text)
    for owner, texts in groups.items():
        table.add_row(owner, Text(", ".join(texts)))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", width=WIDTH, box=None, pad_edge=False)


def _list(title: str, lines: tuple[str, ...]) -> Iterator[RenderableType]:
    yield Text(title, "bold")
    for line in lines:
        row = Table.grid(padding=(0, 1))
        row.add_row("-", Text(line))
        yield row


def _each(numbers: list[int]) -> str:
    return f"{numbers[0]:,}" if len(set(numbers)) == 1 else " / ".join(f"{n:,}" for n in numbers)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _time(hours: float | None) -> str:
    if hours is None:
        return UNKNOWN
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _short(number: float) -> str:
    for sign, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.2f} {sign}"
    return str(number)


def _bytes(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    for unit, size in (("GiB", sizing.GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"
