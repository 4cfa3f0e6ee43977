"""The story of a small real evolution: its looks, that none is taken twice, and its page in a real browser."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from orchestrator import spec
from orchestrator.evaluation.held_out import compare, held_out_samples
from orchestrator.evolution.loop import Problem, evolve
from orchestrator.evolution.samples import statistics_samples
from orchestrator.inspection.looks import MOST_TOKENS, ZERO, Looks, of_prompt, of_reading
from orchestrator.inspection.story import Story, render
from orchestrator.protocols import Recorder
from orchestrator.report.summary import summarise
from orchestrator.session import evaluator_config
from orchestrator.storage.journal import Journal
from tests.orchestrator.browser import Page
from tests.orchestrator.inspection.test_inspect import contrast
from workers.evaluator import Evaluator
from workers.reading import Reading
from workers.unit import SampleRef, Unit

OVERRIDES = [
    "name=<b>small",
    "memory.features=[expected_attention, age]",
    "memory.scorer=linear",
    "memory.selection=budget",
    "fitness.budgets=[0.3, 0.6]",
    "start.bias=0",
    "generations=4",
    "evaluation.samples=3",
    "evaluation.policies=[full, namm]",
]


class Told(Recorder):
    """Looks as a job does, and keeps the generations."""

    def __init__(self, looks: Looks, budget: float) -> None:
        self.looks, self.budget, self.records = looks, budget, []

    def looked(self, generation, memory):
        self.looks.take(generation, dataclasses.replace(memory, budget=self.budget))

    def told(self, record, settled):
        self.records.append(record)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, smoke):
    """A job of four generations on the small model, evaluated in this process: (job, evaluator, evolved, recorder)."""
    folder = tmp_path_factory.mktemp("ran")
    text = spec.yaml.safe_dump({key: value for key, value in smoke.items() if key not in ("memory", "name")})
    job = spec.parse(text, "job.yaml", ["memory.update_interval=64", *OVERRIDES])
    evaluator = Evaluator(evaluator_config(job))

    def evaluate(policies, samples, progress=None):
        return [[evaluator.evaluate(Unit((policy,), (ref,)))[0][0] for ref in samples] for policy in policies]

    read: list[SampleRef] = []

    def reading(memory, ref):
        read.append(ref)
        return evaluator.reading(memory, ref)

    from namm_core.scoring import scorer

    statistics = evaluator.statistics(statistics_samples(job))
    problem = Problem(evaluate, statistics, scorer.num_parameters(job.memory))
    sample = held_out_samples(job.kinds, 3)[0]
    with closing(Journal(folder, "job")) as journal:
        recorder = Told(Looks(reading, journal.fact, sample), job.evaluation.budget)
        evolved = evolve(job, problem, recorder)
    looked_at = len(read)
    with closing(Journal(folder, "job")) as journal:  # as a job that was killed and goes on
        again = Told(Looks(reading, journal.fact, sample), job.evaluation.budget)
        evolve(job, problem, again, recorder.records)
    assert len(read) == looked_at  # no look is taken twice
    assert again.looks.taken == recorder.looks.taken and again.looks.prompt == recorder.looks.prompt
    alone = evolve(job, problem)
    assert (alone.best.theta == evolved.best.theta).all()  # a look decides nothing
    assert [r["fitness"] for r in alone.generations] == [r["fitness"] for r in evolved.generations]
    final = dataclasses.replace(evolved.best, budget=job.evaluation.budget)
    lines = compare(evaluate, final, job.evaluation.policies, held_out_samples(job.kinds, 3))
    about = {
        "best_generation": evolved.best_generation,
        "trained_tasks": list(job.train),
        "heldout_tasks": ["resident"],
    }
    result = summarise(lines, about)
    last = of_reading(evaluator.reading(final, sample))
    return Story(job, recorder.records, recorder.looks.prompt, recorder.looks.taken, result, last), evaluator, looked_at


def test_a_look_at_each_validation_and_at_the_start(ran):
    story, evaluator, looked_at = ran
    assert list(story.looks) == [0, 2, 4] and looked_at == 3  # one evaluation each
    prompt, look = story.prompt, story.looks[4]
    assert len(prompt["tokens"]) == prompt["length"] == 264 and prompt["left_out"] == 0
    heads = np.array([[ord(c) - ZERO for c in row] for row in look["held"]])
    assert heads.shape == (prompt["layers"], 264) and 0 <= heads.min() and heads.max() == prompt["heads"]
    assert heads.mean() / prompt["heads"] == pytest.approx(look["kept"]) == pytest.approx(0.3, abs=0.01)
    relevant = np.array(prompt["relevant"], bool)
    assert heads[:, relevant].mean() / prompt["heads"] == pytest.approx(look["relevant"])
    assert {"facts", "filler", "question"} >= set(prompt["kinds"])


def test_a_long_prompt_is_shown_without_its_middle():
    length = MOST_TOKENS + 10
    held = np.zeros((1, 2, length), bool)
    held[0, :, -1] = held[0, 0, 0] = True
    held[0, :, MOST_TOKENS // 2 : MOST_TOKENS // 2 + 10] = True  # what is left out
    tokens = [str(i) for i in range(length)]
    reading = Reading(SampleRef("t", "heldout", 0), tokens, ["other"] * length, np.zeros(length, bool), held, length)
    prompt, look = of_prompt(reading), of_reading(reading)
    assert len(prompt["tokens"]) == MOST_TOKENS and (prompt["cut"], prompt["left_out"]) == (MOST_TOKENS // 2, 10)
    assert prompt["tokens"][prompt["cut"]] == str(MOST_TOKENS // 2 + 10)
    assert look["held"] == ["1" + "0" * (MOST_TOKENS - 2) + "2"] and look["relevant"] is None
    assert look["kept"] == pytest.approx(23 / (2 * length))


@pytest.fixture(scope="module")
def written(ran, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("story") / "story.html"
    path.write_text(render(ran[0]))
    return path


def test_it_is_one_light_file_before_the_first_generation_and_after_the_last(ran, written):
    text = written.read_text()
    assert "://" not in text and "<b>small" not in text and "{{" not in text
    assert len(text) < 3_000_000
    begun = dataclasses.replace(ran[0], records=[], looks={0: ran[0].looks[0]}, result=None, final=None)
    page = render(begun)
    assert "0 of 4 generations told so far" in page and 'id="final"' not in page
    with pytest.raises(ValueError, match="no look"):
        render(dataclasses.replace(begun, looks={}))


@pytest.fixture(scope="module")
def shown(written, chromium) -> Page:
    chromium.open(written.as_uri())
    return chromium


SHARES = "[...document.querySelectorAll('#text span')].map((s) => Number(s.style.getPropertyValue('--share')))"


def text_of(page: Page, id: str) -> str:
    return page.run(f"document.getElementById('{id}').textContent")


def test_the_slider_moves_tokens_figures_and_words(ran, shown):
    """By the keyboard, from the table's memory back to the start."""
    story, _, _ = ran
    shown.run("document.getElementById('when').focus()")
    seen = {}
    for _ in range(4):
        name = text_of(shown, "which")
        shares, told = shown.run(SHARES), text_of(shown, "told")
        line = shown.run("document.querySelector('svg .now').getAttribute('x1')")
        sizes = shown.run("document.getElementById('sizes-line').getAttribute('points')")
        spoken = shown.run("document.getElementById('when').getAttribute('aria-valuetext')")
        assert spoken == name
        seen[name] = (shares, told, float(line), sizes)
        shown.press("ArrowLeft")
    assert list(seen) == ["the memory of the table", "4 of 4", "2 of 4", "before the first"]
    for name, at in {"4 of 4": 4, "2 of 4": 2, "before the first": 0}.items():
        look, (shares, told, _, _) = story.looks[at], seen[name]
        heads = np.array([[ord(c) - ZERO for c in row] for row in look["held"]])
        np.testing.assert_allclose(shares, heads.mean(axis=0) / story.prompt["heads"])
        assert f"holds {100 * look['kept']:.1f} % of this prompt" in told
    record = story.records[1]
    assert f"it scores {record['validation_score']:.3f}" in seen["2 of 4"][1]
    assert seen["before the first"][2] < seen["2 of 4"][2] < seen["4 of 4"][2]
    assert seen["2 of 4"][3].count(",") == 2 and seen["before the first"][3] == ""  # two sizes


def test_play_goes_through_all_stops(shown):
    shown.run("document.getElementById('when').value = 3; document.getElementById('play').click()")
    assert text_of(shown, "which") == "before the first" and text_of(shown, "play") == "Pause"
    shown.ask("Runtime.evaluate", expression="new Promise((r) => setTimeout(r, 1500))", awaitPromise=True)
    assert text_of(shown, "which") != "before the first"
    shown.run("document.getElementById('play').click()")
    assert text_of(shown, "play") == "Play"
    shown.run("stopAt(3)")


def test_the_table_and_the_charts_say_what_the_result_says(ran, shown):
    story, _, _ = ran
    rows = shown.run(
        "[...document.querySelectorAll('#final tbody tr')].map((r) => [...r.children].map((c) => c.innerText))"
    )
    policies = story.result["policies"]
    assert [row[0] for row in rows] == ["full", "namm"]
    assert [row[2] for row in rows] == [f"{policies[row[0]]['mean']:.3f}" for row in rows]
    assert f"memory scores {policies['namm']['mean']:.3f} on 3 held-out samples" in text_of(shown, "verdict")
    labels = shown.run("[...document.querySelectorAll('svg')].map((s) => s.getAttribute('aria-label'))")
    assert len(labels) == 4 and f"mean {story.records[0]['fitness_mean']:.3f}" in labels[0]
    cells = shown.run("[...document.querySelectorAll('rect.cell')].map((c) => Number(c.getAttribute('fill-opacity')))")
    kept = [share for record in story.records for share in record["kept_layers"]]
    np.testing.assert_allclose(cells, kept, atol=6e-4)
    assert shown.run("document.querySelectorAll('#generations tbody tr').length") == 4


def test_it_can_be_read_in_light_and_dark_and_on_a_phone(shown, tmp_path):
    for scheme in ("light", "dark"):
        shown.scheme(scheme)
        pairs = shown.run(
            "[...document.querySelectorAll('p, h1, h2, label, select, button, output, figcaption, td, th, summary')]"
            ".filter((e) => e.getClientRects().length).map((e) => { let b = e; const none = 'rgba(0, 0, 0, 0)'; "
            "while (getComputedStyle(b).backgroundColor === none) b = b.parentElement;"
            " return [getComputedStyle(e).color, getComputedStyle(b).backgroundColor] })"
        )
        assert min(contrast(*pair) for pair in pairs) >= 4.5
        for width in (1200, 390):
            shown.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            assert shown.run("document.documentElement.scrollWidth <= innerWidth")
            shown.picture(tmp_path / f"{scheme}-{width}.png")
            assert (imread(tmp_path / f"{scheme}-{width}.png")[..., :3].mean() < 0.5) == (scheme == "dark")
    unnamed = "[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length"
    assert shown.run(unnamed) == 0
    assert [url for url in shown.requests if not url.startswith(("file://", "data:"))] == [] and shown.errors == []
