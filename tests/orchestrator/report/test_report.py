"""The report: intervals, pairing, what result.json holds, and tables that fit a terminal."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from orchestrator.paired import paired_interval
from orchestrator.report.summary import summarise
from orchestrator.report.tables import markdown, table

POLICIES = ("full", "namm", "oracle", "h2o", "l2", "streaming", "random")


def record(policy, task, sample, score, kept=1.0, budget=None):
    return {
        "task": task,
        "sample": sample,
        "split": "heldout",
        "policy": policy,
        "budget": budget,
        "score": score,
        "logprob": -0.5,
        "kept": kept,
        "prediction": "Oslo",
    }


def two_tasks():
    """Task a with 3 samples, task b with 1; scores of full, namm and a baseline."""
    scores = {"full": (1, 0, 1, 0.5), "namm": (1, 1, 1, 0.5), "h2o": (0, 0, 1, 0.5)}
    kept = {"full": (1, 1, 1, 1), "namm": (0.2, 0.4, 0.2, 0.4), "h2o": (0.3, 0.3, 0.3, 0.3)}
    samples = (("a", 0), ("a", 1), ("a", 2), ("b", 0))
    return [
        record(name, *sample, score, kept[name][i], 0.3 if name == "h2o" else None)
        for name, row in scores.items()
        for i, (sample, score) in enumerate(zip(samples, row, strict=True))
    ]


def many_tasks(tasks, samples=4):
    rng = random.Random(0)
    level = dict(zip(POLICIES, (0.8, 0.9, 0.95, 0.7, 0.3, 0.6, 0.5), strict=True))
    return [
        record(name, task, i, float(rng.random() < level[name]), 1.0 if name == "full" else 0.31)
        for name in POLICIES
        for task in tasks
        for i in range(samples)
    ]


@pytest.mark.parametrize(("level", "quantile"), [(0.95, 2.7764451), (0.9, 2.1318468), (0.99, 4.6040949)])
def test_interval_has_the_tabulated_quantile(level, quantile):
    mean, low, high = paired_interval(np.array([1, 2, 3, 4, 5]), level)
    half = quantile * math.sqrt(2.5 / 5)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), rel=1e-7)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [paired_interval(rng.normal(0.3, 2, size=5)) for _ in range(4000)]
    covered = np.mean([low <= 0.3 <= high for _, low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.012)  # a normal quantile would give 0.88


def test_interval_without_enough_samples_is_nan():
    assert paired_interval(np.array([0.25]))[0] == 0.25
    assert np.isnan(paired_interval(np.array([0.25]))[1:]).all()
    assert np.isnan(paired_interval(np.array([]))).all()


def test_result_by_hand():
    result = summarise(two_tasks(), {"seed": 7, "generations": 3})
    assert result["base"] == pytest.approx({"a": 2 / 3, "b": 0.5})
    assert (result["seed"], result["generations"]) == (7, 3)
    namm, h2o, full = (result["policies"][name] for name in ("namm", "h2o", "full"))
    assert namm["score"] == pytest.approx({"a": 1, "b": 0.5})
    assert namm["mean"] == pytest.approx(0.75)  # over tasks, not samples
    assert namm["normalised"] == pytest.approx((1.5 + 1) / 2, abs=1e-6)
    assert namm["kept"] == pytest.approx(0.3)
    assert (namm["samples"], namm["budget"], h2o["budget"]) == (4, None, 0.3)
    # Differences (0, 1, 0, 0): mean 0.25, standard error 0.25, t(3) = 3.1824463.
    assert namm["difference"] == pytest.approx(0.25)
    assert namm["difference_interval"] == pytest.approx([0.25 - 0.7956116, 0.25 + 0.7956116])
    # namm minus h2o: (1, 1, 0, 0): mean 0.5, standard error sqrt(1/3)/2.
    half = 3.1824463 * math.sqrt(1 / 3) / 2
    assert h2o["namm_difference"] == pytest.approx(0.5)
    assert h2o["namm_difference_interval"] == pytest.approx([0.5 - half, 0.5 + half])
    assert "namm_difference" not in namm and "namm_difference_interval" not in namm
    assert (full["difference"], full["difference_interval"]) == (0, [0, 0])


def test_order_of_the_records_changes_no_bit():
    records = many_tasks(("a", "b", "c"), samples=7)
    shuffled = random.Random(1).sample(records, len(records))
    assert json.dumps(summarise(records)) == json.dumps(summarise(shuffled))


def test_trained_and_heldout_kinds_are_reported_apart():
    extra = {"trained_tasks": ["b", "absent"], "heldout_tasks": ["a"]}
    result = summarise(two_tasks(), extra)
    assert list(result["base"]) == ["b", "a"]
    namm = result["policies"]["namm"]
    assert (namm["mean_trained"], namm["mean_heldout_kinds"]) == pytest.approx((0.5, 1.0))
    assert "a†" in markdown(result) and "b†" not in markdown(result)
    assert summarise(two_tasks(), extra | {"heldout_tasks": []})["policies"]["namm"]["mean_heldout_kinds"] is None


def test_one_sample_still_gives_strict_json_and_tables():
    result = summarise([record("full", "a", 0, 1.0), record("namm", "a", 0, 0.5, 0.4)])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["policies"]["namm"]["difference_interval"] == [None, None]
    assert "-0.500" in markdown(result) and "nan" not in markdown(result)
    assert "-0.500" in printed(result, 80)


def test_a_table_without_a_namm():
    result = summarise([r for r in two_tasks() if r["policy"] != "namm"])
    assert "namm_difference" not in result["policies"]["h2o"]
    assert "h2o" in printed(result, 80)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "'full' and 'h2o' do not cover the same samples.* sample 0 of 'b'"),
        (
            lambda rows: [*rows, record("namm", "c", 9, 1.0)],
            "'full' and 'namm' do not cover.* sample 9 of 'c'",
        ),
        (lambda rows: [*rows, rows[0]], "'full' has sample 0 of 'a' twice"),
        (lambda rows: [*rows, record("h2o", "a", 0, 1.0, budget=0.5)], "'h2o' has budgets 0.3 and 0.5"),
        (lambda rows: [r for r in rows if r["policy"] != "full"], "no samples of policy 'full'"),
        (lambda rows: [], "no samples of policy 'full'"),
        (lambda rows: [rows[0] | {"score": math.nan}, *rows[1:]], "'full' scored nan on sample 0 of 'a'"),
        (lambda rows: [rows[0] | {"score": None}, *rows[1:]], "'full' scored None on sample 0 of 'a'"),
    ],
)
def test_records_that_cannot_be_compared_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        summarise(change(two_tasks()))


def test_extra_cannot_replace_what_the_samples_say():
    with pytest.raises(ValueError, match="policies"):
        summarise(two_tasks(), {"policies": {}})


def printed(result, width):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table(result))
    return capture.get()


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize(
    "tasks",
    [
        ("residence", "passkey", "topic", "passage", "journey", "latest"),
        tuple(f"passage_retrieval_{i}" for i in range(21)),
    ],
)
def test_table_is_whole_in_a_terminal(width, tasks):
    result = summarise(many_tasks(tasks), {"trained_tasks": tasks[:-2], "heldout_tasks": tasks[-2:]})
    text = printed(result, width)
    assert "…" not in text and max(len(line) for line in text.splitlines()) <= width
    lines = [line.split() for line in text.splitlines()]
    order = [cells[0] for cells in lines if cells and cells[0] in POLICIES]
    assert order[:3] == ["full", "namm", "oracle"]
    means = [result["policies"][name]["mean"] for name in order[3:]]
    assert len(order) == 7 and means == sorted(means, reverse=True)
    for task in tasks:
        shown = task + "†" if task in tasks[-2:] else task
        values = [f"{result['policies'][name]['score'][task]:.3f}" for name in order]
        assert [shown, *values] in lines


def test_markdown_has_every_column_in_every_row():
    result = summarise(many_tasks(("a", "b")), {"heldout_tasks": ["b"]})
    rows = [line.strip("|").split("|") for line in markdown(result).splitlines() if line.startswith("|")]
    rows, by_task = rows[: 2 + len(POLICIES)], rows[2 + len(POLICIES) :]
    assert len(rows) == 2 + len(POLICIES) and {len(row) for row in rows} == {7}
    assert [[cell.strip() for cell in row[:2]] for row in by_task[2:]] == [["a", "trained"], ["b", "held out"]]
    entry = result["policies"]["namm"]
    for row, task in zip(by_task[2:], "ab", strict=True):
        score, full, normalised, kept = (float(cell) for cell in row[2:])
        assert (score, full) == (round(entry["score"][task], 3), round(result["base"][task], 3))
        assert normalised == pytest.approx(entry["score"][task] / result["base"][task], abs=1e-3)
        assert kept == pytest.approx(entry["kept_tasks"][task], abs=1e-3)
    low, high = result["policies"]["oracle"]["difference_interval"]
    assert f"[{low:+.3f}, {high:+.3f}]" in rows[4][3]
    assert rows[2][3].strip() == "" and rows[3][4].strip() == ""  # neither full nor namm against itself


def test_neither_torch_nor_pyplot_is_imported():
    code = "import sys, orchestrator.report.summary, orchestrator.report.tables, orchestrator.report.pictures as _; "
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib.pyplot"} & set(done.stdout.split())
