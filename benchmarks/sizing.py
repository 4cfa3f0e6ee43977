"""The tables of docs/operations.md: what an evolution takes, by the formulas of `orchestrator.plan.cost`.

    python -m benchmarks.sizing
    python -m benchmarks.sizing --tokens 8192 --population 32 --samples 48 --rows 2

Pure arithmetic, nothing is loaded. For a given job: namm evolve CONFIG --dry-run.
"""

from __future__ import annotations

import argparse
import dataclasses

from namm_core.config import NammConfig
from orchestrator.plan.cost import (
    GIB,
    Gpu,
    Job,
    Model,
    full_seconds,
    generation_seconds,
    journal_bytes,
    memory,
    prompt_bytes,
    seconds,
    work,
)


def _tables(model: Model, job: Job, gpu: Gpu, kept: list[float], gpus: list[int]) -> str:
    sized = [dataclasses.replace(job, kept=k) for k in kept]
    lines = [
        f"GPU memory of a worker, GiB ({job.rows} row(s) of {job.tokens:,} tokens; the worst of the last three counts)",
        "",
        "| kept | weights | keys, values | memory's state | in attention | in MLP | in decode | together |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in sized:
        m = memory(model, one)
        row = [m.weights, m.cache, m.state, m.attention, m.mlp, m.decode, m.total]
        lines.append(f"| {one.kept:.1f} | " + " | ".join(f"{b / GIB:.1f}" for b in row) + " |")
    evaluations = (job.population + 2) * job.samples
    lines += [
        "",
        f"A generation: {job.population} candidates x {job.samples} samples, {evaluations:,} evaluations with the mean "
        "and the full cache,",
        f"at {gpu.of_peak:.0%} of {gpu.tensor:g} TFLOP/s (memory: of {gpu.scalar:g}) and {gpu.of_bandwidth:.0%} of "
        f"{gpu.bandwidth:g} TB/s",
        "",
        "| kept | TFLOP linear | attention | memory | TB moved | s an evaluation | "
        + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in gpus)
        + " |",
        "|---:" * (6 + len(gpus)) + "|",
    ]
    for one in sized:
        w = work(model, one)
        row = [f"{x / 1e12:.0f}" for x in (w.linear, w.attention, w.memory)]
        row += [f"{(w.own_traffic + w.traffic + w.decode) / 1e12:.1f}", f"{seconds(w, gpu):.1f}"]
        row += [_span(generation_seconds(model, one, gpu, n)) for n in gpus]
        lines.append(f"| {one.kept:.1f} | " + " | ".join(row) + " |")
    line, prompt = journal_bytes(model, 4 * job.answer), prompt_bytes(job)
    lines += [
        "",
        f"full cache: {full_seconds(model, job, gpu):.1f} s an evaluation",
        f"journal: {line:,} bytes a result, {evaluations * line / 2**20:.0f} MiB a generation; Redis: "
        f"{prompt / 1024:.0f} KiB a prompt, {job.samples * prompt / 2**20:.0f} MiB a generation",
    ]
    return "\n".join(lines)


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for shape in (Model, Job, Gpu):
        for f in dataclasses.fields(shape):
            if isinstance(f.default, bool):
                parser.add_argument(f"--{f.name}", action="store_true")
            elif f.name not in ("memory", "kept"):
                parser.add_argument(f"--{f.name.replace('_', '-')}", type=type(f.default), default=f.default)
    parser.add_argument("--interval", type=int, default=NammConfig.update_interval, help="tokens between two updates")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.1, 0.3, 0.5, 1.0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 32])
    options = vars(parser.parse_args(arguments))
    gpus, kept = options.pop("gpus"), options.pop("kept")
    memory_ = NammConfig(update_interval=options.pop("interval"))

    def made(shape: type, **more):
        known = {f.name for f in dataclasses.fields(shape)}
        return shape(**{name: value for name, value in options.items() if name in known}, **more)

    print(_tables(made(Model), made(Job, memory=memory_), made(Gpu), kept, gpus))


if __name__ == "__main__":
    main()
