"""The page `story.html`: a memory generation by generation, in one HTML file for any browser, without a network.

A slider goes through the looks at one prompt (`looks`); tokens, charts and figures follow it. Text from prompts reaches
the page as data, never as HTML. Knows records, looks and results; knows no models, workers or folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.inspection import charts
from orchestrator.inspection.charts import Axis
from orchestrator.inspection.looks import ZERO
from orchestrator.report.cells import DIFFERENCES, brackets, number, ordered
from orchestrator.report.verdict import verdict
from orchestrator.spec import JobSpec
from orchestrator.storage.run_folder import MEMORY, RUNS, again

LIGHT = 1_500_000
"""Characters that the looks may take, so that the page stays below 3 MB; of more looks, some are left out."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Story:
    """What a run has to tell, so far or in the end, as plain JSON values."""

    job: JobSpec
    records: Sequence[Record]
    """Of the generations told so far, in order (`generations.jsonl`)."""
    prompt: Record
    """Which prompt was looked at (`looks.of_prompt`)."""
    looks: Mapping[int, Record]
    """What was held of it (`looks.of_reading`), by generation; 0 is before the first one."""
    result: Record | None = None
    """What `result.json` holds, of a finished run."""
    final: Record | None = None
    """What the memory of the final table holds of the prompt."""
    generations: int = field(init=False)
    """Told so far or planned, whichever is more; of a finished run, told."""

    def __post_init__(self) -> None:
        planned = 0 if self.result else self.job.generations or 0
        object.__setattr__(self, "generations", max(1, planned, len(self.records)))

    @property
    def across(self) -> Axis:
        """The horizontal axis of all charts over generations."""
        return charts.across(self.generations)


def render(story: Story) -> str:
    """The page. Raises ValueError before the first look."""
    if not story.looks:
        raise ValueError("there is nothing to tell yet: no look was taken")
    parts = PackageLoader("orchestrator.inspection", "page_parts")
    pages = Environment(loader=parts, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    job, told = story.job, len(story.records)
    sizes = _sizes(story)
    state = verdict(story.result) if story.result else f"{told} of {story.generations} generations told so far."
    folder = RUNS / job.name
    return pages.get_template("story.html").render(
        title=f"How {job.name} learned what to forget",
        lead=f"A memory for {Path(job.model.path).name}, evolved on {', '.join(job.train)}. A generation is "
        f"{job.search.population} candidates; the slider stops where the search's mean was looked at on validation "
        "samples.",
        verdict=state,
        stops=[_stop(story, at, sizes) for at in _spread(story)] + _final_stop(story, sizes),
        prompt={**story.prompt, "zero": ZERO},
        about_prompt=_about(story.prompt),
        figures=_figures(story, sizes),
        final=_final(story.result) if story.result else None,
        generations=_table(story.records) if story.records else None,
        repeat={
            "text": f"The memory: {folder / MEMORY}. The same run again:",
            "command": again(folder),
        },
    )


def _about(prompt: Record) -> str:
    text = f"{prompt['task']}, held-out sample {prompt['index']}: {prompt['length']:,} tokens"
    return text + (f", of which the first and the last {prompt['cut']:,} are shown." if prompt["left_out"] else ".")


def _spread(story: Story) -> list[int]:
    """The generations of the looks that are shown: all, or as many as the page has room for, ends included."""
    looks = sorted(story.looks)
    room = max(2, LIGHT // max(1, sum(map(len, story.looks[looks[0]]["held"]))))
    if len(looks) <= room:
        return looks
    return sorted({looks[round(i * (len(looks) - 1) / (room - 1))] for i in range(room)})


def _stop(story: Story, at: int, sizes: _Sizes | None) -> dict[str, Any]:
    """What the page shows of one look."""
    look = story.looks[at]
    told = [_holds(look)]
    if at:
        told += _said(story.records[at - 1]) if at <= len(story.records) else []
    return {
        "name": f"{at} of {story.generations}" if at else "before the first",
        "told": " ".join(told),
        "held": look["held"],
        "x": story.across.at(at),
        "sizes": sizes.line(at) if sizes else "",
    }


def _final_stop(story: Story, sizes: _Sizes | None) -> list[dict[str, Any]]:
    if story.final is None or story.result is None:
        return []
    best = story.result["best_generation"]
    return [
        {
            "name": "the memory of the table",
            "told": f"{_holds(story.final)} It is that of generation {best}"
            + (", brought to its size." if story.result.get("threshold") else "."),
            "held": story.final["held"],
            "x": story.across.at(best),
            "sizes": sizes.line(best) if sizes else "",
        }
    ]


def _holds(look: Record) -> str:
    text = f"The memory holds {_percent(look['kept'])} of this prompt"
    return text + ("." if look["relevant"] is None else f", and {_percent(look['relevant'])} of what answers it.")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _said(record: Record) -> list[str]:
    """A generation in words."""
    told = [f"Fitness of the candidates {record['fitness_mean']:.3f}, of the best {record['fitness_best']:.3f}."]
    if "validation_score" in record:
        told.append(
            f"On validation samples it scores {record['validation_score']:.3f} with "
            f"{_percent(record['validation_kept'])} of the cache, the full cache {record['validation_full']:.3f}."
        )
    return told


def _figures(story: Story, sizes: _Sizes | None) -> list[dict[str, Any]]:
    """The charts, each with its title and the names of its lines."""
    records, x = story.records, story.across
    if not records:
        return []
    at = [record["generation"] for record in records]
    mean, best, deviation = ([record[f"fitness_{name}"] for record in records] for name in ("mean", "best", "std"))
    spread = [(g, m - s, m + s) for g, m, s in zip(at, mean, deviation, strict=True)]
    figures = [
        _figure(
            "Fitness",
            [("first", "mean of the candidates (band: ± 1 standard deviation)"), ("second", "best of them")],
            charts.lines(
                f"Fitness of the candidates: mean {mean[0]:.3f}, best {best[0]:.3f} in generation 1; mean "
                f"{mean[-1]:.3f}, best {best[-1]:.3f} in generation {at[-1]}.",
                x,
                list(zip(at, mean, strict=True)),
                list(zip(at, best, strict=True)),
                spread,
            ),
        )
    ]
    looked = [record for record in records if "validation_score" in record]
    if looked:
        score = [(record["generation"], record["validation_score"]) for record in looked]
        full = [(record["generation"], record["validation_full"]) for record in looked]
        figures.append(
            _figure(
                "Score on validation samples (0 to 1)",
                [("first", "the memory"), ("second", "the full cache")],
                charts.lines(
                    f"Validation score: {score[0][1]:.3f} in generation {score[0][0]}, {score[-1][1]:.3f} in "
                    f"generation {score[-1][0]}; the full cache {full[-1][1]:.3f}.",
                    x,
                    score,
                    full,
                    dots=True,
                ),
            )
        )
    layers = {record["generation"]: record["kept_layers"] for record in records}
    first, last = (", ".join(f"{share:.2f}" for share in layers[g]) for g in (at[0], at[-1]))
    label = f"Kept fraction by layer, from layer 0: {first} in generation 1; {last} in generation {at[-1]}."
    figures.append(
        _figure("Kept fraction by layer, on training samples (shades from 0 to 1)", [], charts.cells(label, x, layers))
    )
    return figures + ([sizes.figure(max(sizes.curves))] if sizes else [])


def _figure(title: str, key: list[tuple[str, str]], svg: str) -> dict[str, Any]:
    return {"title": title, "key": key, "svg": Markup(svg)}  # our own text; what is not is escaped where it is put in


@dataclass(frozen=True)
class _Sizes:
    """Score against size on validation samples, by generation, of a memory that is evolved for several sizes."""

    curves: Mapping[int, Sequence[tuple[float, float]]]
    """(kept fraction, score), smallest first."""
    full: float
    x: Axis
    y: Axis

    def line(self, generation: int) -> str:
        """The curve of the last look that is not behind a generation, as the attribute `points` of a line."""
        known = [g for g in self.curves if g <= generation]
        return charts.points(self.x, self.y, self.curves[max(known)]) if known else ""

    def figure(self, generation: int) -> dict[str, Any]:
        """The chart, with the curve of one generation."""
        curve = ", ".join(f"{score:.3f} with {size:g}" for size, score in self.curves[generation])
        svg = charts.moving(
            f"Score by kept fraction in generation {generation}: {curve}; the full cache {self.full:.3f}.",
            self.x,
            self.y,
            self.full,
            self.line(generation),
        )
        return _figure(
            "Score on validation samples by size of the cache",
            [("first", "the memory, at the generation that is shown"), ("second", "the full cache")],
            svg,
        )


def _sizes(story: Story) -> _Sizes | None:
    curves: dict[int, list[tuple[float, float]]] = {}
    full = 0.0
    for record in story.records:
        look = record.get("validation_looks", {}).get(record.get("validation_of"), {})
        curve = [(float(size), score) for size, score in look.get("budgets", {}).items() if score is not None]
        if curve:
            curves[record["generation"]], full = sorted(curve), record["validation_full"]
    if not curves:
        return None
    every = [point for curve in curves.values() for point in curve]
    x = charts.across(max(size for size, _ in every), min(size for size, _ in every))
    return _Sizes(curves, full, x, charts.upright([full, *(score for _, score in every)]))


def _final(result: Record) -> dict[str, Any]:
    """The final table: its head, rows and caption."""
    policies = result["policies"]
    groups = {"mean_trained": "trained kinds", "mean_heldout_kinds": "held-out kinds"}
    groups = {name: head for name, head in groups.items() if policies["full"].get(name) is not None}
    rows = []
    for name in ordered(policies):
        entry = policies[name]
        row = [name, f"{entry['kept']:.2f}", number(entry["mean"])]
        row += [brackets(name, entry, difference) for difference in DIFFERENCES]
        rows.append(row + [number(entry[group]) for group in groups])
    head = ["policy", "kept", "score", "minus full (95 %)", "namm minus it (95 %)", *groups.values()]
    samples = policies["full"]["samples"]
    return {"head": head, "rows": rows, "caption": f"{samples} held-out samples, differences paired."}


def _table(records: Sequence[Record]) -> dict[str, Any]:
    """All generations: head and rows."""
    head = ["generation", "fitness", "best", "kept", "sigma", "validation", "full cache", "kept there"]
    rows = [
        [
            record["generation"],
            number(record["fitness_mean"]),
            number(record["fitness_best"]),
            f"{record['kept']:.2f}",
            f"{record['sigma']:.4f}",
            number(record.get("validation_score")),
            number(record.get("validation_full")),
            f"{record['validation_kept']:.2f}" if "validation_kept" in record else "",
        ]
        for record in records
    ]
    return {"head": head, "rows": rows}
