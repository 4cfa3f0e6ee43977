"""Each policy at its best setting: what is tried and on which samples, what is chosen, how results say so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from namm_core import FeatureStatistics, Namm, NammConfig, policies
from orchestrator.cli import main
from orchestrator.evaluation.settings import ROOM, Tuning, at_best, chosen, grid, sentence
from orchestrator.policy_entries import PolicyEntry, parse_policies
from workers.unit import SampleResult

KINDS = ("a", "b", "c")
TUNING = Tuning(KINDS, 24, (0.1, 0.5))


class Landscape:
    """Scores of made-up settings, the same for each sample but for its number; remembers what was asked, once each.

    best: options of the highest scores; kept: of settings that keep another fraction than they are given; failed:
    samples that cannot be evaluated.
    """

    def __init__(self, best: dict, kept: dict[str, float] | None = None, failed: tuple = ()) -> None:
        self.best, self.kept, self.failed = best, kept or {}, failed
        self.asked: set[tuple] = set()

    def __call__(self, policies, samples, progress=lambda more: None):
        progress(len(policies) * len(samples))
        self.asked |= {(json.dumps(dict(p.options)), p.budget, ref) for p in policies for ref in samples}
        return [[self._result(policy, ref) for ref in samples] for policy in policies]

    def _result(self, policy, ref) -> SampleResult | None:
        if ref in self.failed:
            return None
        near = len(set(self.best.items()) & set(policy.options.items())) - 0.1 * len(policy.options)
        kept = self.kept.get(json.dumps(dict(policy.options)), policy.budget)
        return SampleResult(*ref, 0.2 * near + 0.01 * (ref.index % 3), 0.0, kept, [kept], 100, "")


@pytest.mark.parametrize("name", [n for n in policies.names() if policies.named(n).takes_budget])
def test_what_is_worth_trying_can_be_tried(name):
    """The defaults first, at most six, none twice, and all of them options that the policy takes."""
    settings = policies.settings(name)
    assert settings[0] == {} and len(settings) <= 6
    assert len({json.dumps(setting, sort_keys=True) for setting in settings}) == len(settings)
    for setting in settings:
        assert policies.named(name)(budget=100, **policies.check(name, setting)).budget == 100
        assert all(policies.options(name)[key].default != value for key, value in setting.items())


@pytest.mark.parametrize("best", policies.settings("keydiff"), ids=str)
def test_the_highest_mean_is_chosen_and_half_of_the_work_saved(best):
    landscape = Landscape(best)
    entry, record = chosen(landscape, PolicyEntry("keydiff", best=True), TUNING)
    assert entry == PolicyEntry("keydiff", best) and record["chosen"] == best
    assert len(landscape.asked) == 2 * (6 * 6 + 3 * 6 + 2 * 12)  # sizes x (settings x new samples, round by round)
    assert {ref.split for *_, ref in landscape.asked} == {"validation"}
    assert [tried["options"] for tried in record["tried"]] == list(policies.settings("keydiff"))
    assert sorted(tried["samples"] for tried in record["tried"]) == [6, 6, 6, 12, 24, 24]
    assert record["samples"] == {"a": 8, "b": 8, "c": 8} and record["sizes"] == [0.1, 0.5]
    assert chosen(Landscape(best), PolicyEntry("keydiff", best=True), TUNING) == (entry, record)


def test_a_setting_that_keeps_more_than_its_size_is_not_chosen():
    large = {'{"whole_layers": 2}': 0.1 + 2 * ROOM}
    entry, record = chosen(Landscape({"whole_layers": 2}, large), PolicyEntry("l2", best=True), TUNING)
    assert entry.options != {"whole_layers": 2}
    assert [tried["too_large"] for tried in record["tried"]] == [False, False, True, False, False, False]
    # Unless the policy keeps as much with its defaults: what no update has seen yet is held by all.
    everywhere = {json.dumps(setting): 0.3 for setting in policies.settings("l2")}
    entry, _ = chosen(Landscape({"whole_layers": 2}, everywhere), PolicyEntry("l2", best=True), TUNING)
    assert entry.options == {"whole_layers": 2}


def test_what_the_entry_fixes_is_not_tried_otherwise():
    (entry,) = parse_policies("{name: snapkv, window: 64, budget: 0.2, best: true}")
    assert entry == PolicyEntry("snapkv", {"window": 64}, 0.2, best=True) and entry.label.endswith("budget=0.2, best)")
    assert entry.plain == {"name": "snapkv", "window": 64, "budget": 0.2, "best": True}
    assert all(options["window"] == 64 for options in grid(entry))
    landscape = Landscape({"over": "layer"})
    found, record = chosen(landscape, entry, TUNING)
    assert found.budget == 0.2 and found.options == {"over": "layer", "window": 64} and not found.best
    assert record["sizes"] == [0.2] and {budget for _, budget, _ in landscape.asked} == {0.2}


def test_failed_samples_are_left_out_for_all_and_none_at_all_is_an_error():
    failed = tuple(TUNING.rounds[0][:2])
    _, record = chosen(Landscape({"sinks": 4}, failed=failed), PolicyEntry("keydiff", best=True), TUNING)
    assert max(tried["samples"] for tried in record["tried"]) == 22 and record["chosen"] == {"sinks": 4}
    with pytest.raises(ValueError, match="no validation sample could be evaluated"):
        chosen(Landscape({}, failed=tuple(TUNING.rounds[-1])), PolicyEntry("keydiff", best=True), TUNING)


def test_rounds_grow_and_have_every_kind():
    for samples in (3, 4, 7, 24, 100):
        rounds = Tuning(KINDS, samples, (0.5,)).rounds
        assert len(rounds[-1]) == samples and all({ref.task for ref in round_} == set(KINDS) for round_ in rounds)
        assert all(set(a) < set(b) for a, b in zip(rounds, rounds[1:], strict=False))


def test_policies_without_a_choice_stay_as_they_are():
    assert at_best(PolicyEntry("full")) == PolicyEntry("full")
    assert at_best(PolicyEntry("l2")) == PolicyEntry("l2", best=True)
    assert sentence({}) == ""


@pytest.fixture
def saved(tmp_path):
    """A random NAMM with a threshold, in `saved` below the working folder."""
    theta = np.random.default_rng(0).normal(0.0, 0.1, 4172).astype(np.float32)
    statistics = FeatureStatistics(np.zeros(17, np.float32), np.full(17, 0.05, np.float32), 100.0)
    Namm(NammConfig(update_interval=32), theta, statistics).save_pretrained(tmp_path / "saved")


def test_the_held_out_table_has_each_at_its_best_and_says_why(namm, job_file, tmp_path, saved):
    """With `--best`, at one size in place of the NAMM's own; going on costs nothing and changes nothing."""
    asked = ("--policies", "l2,{name: l2, over: layer},streaming", "--best", "--tuning", "6", "--tuning-budgets", "0.6")
    sizes = ("--budgets", "0.5", "--size", "0.6", "--samples", "6", "--validation", "3", "--timing", "0")
    process = namm("evaluate", job_file(workers={"count": 2}), "--namm", "saved", *asked, *sizes)
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    run = tmp_path / "runs" / "smoke-evaluate"
    result, points = (json.loads((run / name).read_text()) for name in ("result.json", "curve.json"))
    assert result["own_kept"] == result["reference_size"] == 0.6
    assert {(p["policy"], p["budget"]) for p in points if p["policy"] in ("full", "namm")} == {
        ("full", None),
        ("namm", 0.5),
        ("namm", 0.6),
    }
    tuned = {name: entry for name, entry in result["policies"].items() if "settings" in entry}
    assert len(tuned) >= 2 and not any("best" in name for name in result["policies"])
    for name, entry in tuned.items():
        options = entry["settings"]["chosen"]
        policy = PolicyEntry(name.partition("(")[0], options)
        assert policy.label == name and entry["over"] == options.get("over", "head")
        final = [t for t in entry["settings"]["tried"] if t["samples"] == 6]
        best = max(np.mean([*tried["scores"].values()]) for tried in final if not tried["too_large"])
        assert np.mean([*next(t for t in final if t["options"] == options)["scores"].values()]) == best
        assert not any(tried["too_large"] for tried in entry["settings"]["tried"])
        assert name in printed.replace("\n", " ")
    assert {entry["protocol"] for entry in result["policies"].values()} == {"streaming"}
    assert result["policies"]["full"]["over"] is None and all("over" in point for point in points)
    assert "6 validation samples at 0.6 of the cache" in printed.replace("\n", " ")
    assert "at 0.6 of the cache" in printed and "unseen kinds" in printed
    lines = (run / "journal.jsonl").read_text().count('"policy"')
    again = namm("evaluate", "--resume", "smoke-evaluate")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert json.loads((run / "result.json").read_text())["policies"] == result["policies"]
    assert (run / "journal.jsonl").read_text().count('"policy"') == lines


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policies", "{name: full, best: true}"], "policy full has no settings to choose among"),
        (["--policies", "{name: namm, best: true}"], "policy namm takes no options"),
        (["--policies", "{name: l2, best: maybe}"], "policies[0].best: expected bool, found 'maybe'"),
        (["--policies", "{name: l2, sinks: many, best: true}"], "policy l2: sinks: expected int"),
        (["--policies", "l2", "--best", "--tuning", "0"], "tuning must be at least 1, not 0"),
        (["--policies", "l2", "--best", "--tuning-budgets", "1.5"], "tuning_budgets: kept fractions lie between 0 and"),
        (["--policies", "l2", "--size", "1"], "size: kept fractions lie between 0 and 1, not 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capfd, job_file, saved, more, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", job_file(), "--namm", "saved", *more]) == 2
    captured = capfd.readouterr()
    said = (captured.err + captured.out).strip()
    assert message in said and len(said.splitlines()) == 1, said


def test_a_job_does_not_choose(tmp_path, monkeypatch, capfd, job_file):
    monkeypatch.chdir(tmp_path)
    file = job_file(evaluation={"policies": ["full", "namm", {"name": "l2", "best": True}]})
    assert main(["evolve", file]) == 2
    assert "chosen by namm evaluate alone: leave best out" in capfd.readouterr().err
