"""What holds for every search: a new one inherits these tests by being there (searches.py)."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from namm_core.config import from_mapping
from orchestrator.search import lookup
from orchestrator.spec import JobSpec
from tests.orchestrator.landscape import Noisy, job, run, timeless
from tests.orchestrator.search.searches import EVERY, IDS, config, digest, sphere, started

ROOT = Path(__file__).parent.parent.parent.parent
every_search = pytest.mark.parametrize("kind", EVERY, ids=IDS)


# What is asked


@every_search
def test_shapes_and_kinds_of_numbers(kind):
    search = started(kind, np.full(7, 0.25), population=8, sigma0=0.1)
    assert search.population == 8 and 1 <= search.elite <= 8 and search.generation == 0
    assert (
        search.mean.shape == (7,) and search.mean.dtype == np.float32 and np.array_equal(search.mean, np.full(7, 0.25))
    )
    assert isinstance(search.sigma, float) and search.sigma == 0.1
    asked = search.ask()
    assert asked.shape == (8, 7) and asked.dtype == np.float32 and np.isfinite(asked).all()
    assert len(np.unique(asked, axis=0)) == 8
    search.tell(sphere(asked))
    assert search.generation == 1 and search.mean.dtype == np.float32 and np.isfinite(search.mean).all()


@every_search
def test_the_first_candidates_spread_as_sigma0_says(kind):
    drawn = started(kind, np.zeros(2000), population=16, sigma0=0.5).ask()
    assert drawn.std() == pytest.approx(0.5, rel=0.03) and abs(drawn.mean()) < 0.02


@every_search
def test_ask_repeats_until_told_and_cannot_be_spoilt(kind):
    search = started(kind, np.zeros(4), population=6)
    first = search.ask()
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(search.ask(), kept)
    search.tell(np.arange(6.0))
    assert not np.array_equal(search.ask(), kept)


@every_search
def test_seeds_differ(kind):
    first, second = (started(kind, np.zeros(9), seed=seed).ask() for seed in (0, 1))
    assert not np.array_equal(first, second)


# The same bits


@every_search
def test_replay_gives_the_same_bits(kind):
    """A journal holds fitness, not candidates: told the same, another search must stand where the first one stood."""
    record, first = [], started(kind, np.zeros(20), population=8, seed=5)
    for generation in range(12):
        fitness = sphere(first.ask())
        fitness[: generation % 4] = np.nan
        record.append(fitness)
        first.tell(fitness)
    again = started(kind, np.zeros(20), population=8, seed=5)
    for fitness in record:
        again.ask()
        again.tell(fitness)
    assert again.ask().tobytes() == first.ask().tobytes()
    assert (again.mean.tobytes(), again.sigma, again.generation) == (first.mean.tobytes(), first.sigma, 12)


def test_another_process_gives_the_same_bits():
    """Of every search; and none needs torch."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import numpy as np\n"
        "from tests.orchestrator.search.searches import EVERY, digest, started\n"
        "for kind in EVERY: print(digest(started(kind, np.zeros(300), seed=3), 5))\n"
        "print('torch' in sys.modules)"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert other.split() == [*(digest(started(kind, np.zeros(300), seed=3), 5) for kind in EVERY), "False"]


@every_search
def test_the_global_generator_is_neither_read_nor_changed(kind):
    digests = set()
    for seed in (1, 2):
        np.random.seed(seed)
        before = np.random.get_state()
        digests.add(digest(started(kind, np.zeros(9)), 3))
        after = np.random.get_state()
        assert np.array_equal(before[1], after[1]) and before[2:] == after[2:]
    assert len(digests) == 1


@every_search
def test_silent_and_without_files(kind, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = started(kind, np.zeros(9), population=12)
        digest(search, 3)
        search.ask()
        search.tell(np.where(np.arange(12) < 5, np.arange(12.0), np.nan))
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


# What is told


@every_search
def test_a_missing_candidate_counts_for_nothing_wherever_it_lay(kind):
    search, other = (started(kind, np.zeros(5), population=10) for _ in range(2))
    fitness = np.array([np.nan, 5, 3, -np.inf, 6, 4, 2, np.inf, 7, 1])
    candidates = search.ask()
    search.tell(fitness)
    other.ask()
    candidates[[0, 3, 7]] = 1e3
    other.tell(fitness, candidates)
    assert np.isfinite(search.mean).all() and not np.array_equal(search.mean, np.zeros(5))
    assert other.mean.tobytes() == search.mean.tobytes() and other.sigma == search.sigma
    assert np.array_equal(other.ask(), search.ask())


@every_search
def test_candidates_that_were_evaluated_in_place_of_the_asked_ones_are_what_is_learnt_from(kind):
    search, other = (started(kind, np.zeros(5), population=8) for _ in range(2))
    asked = search.ask()
    search.tell(np.arange(8.0), asked)
    asked = other.ask()
    moved = np.full(5, 0.5, np.float32)
    other.tell(np.arange(8.0), asked[::-1] + moved)
    assert not np.array_equal(search.mean, other.mean)


@every_search
def test_one_finite_value_teaches_nothing_and_is_no_error(kind):
    search = started(kind, np.ones(5), population=8)
    first = search.ask()
    search.tell([np.nan] * 7 + [1.0])
    assert np.array_equal(search.mean, np.ones(5)) and search.sigma == 0.065 and search.generation == 1
    assert not np.array_equal(search.ask(), first)


@every_search
def test_what_cannot_be_told_is_refused_and_changes_nothing(kind):
    search, other = (started(kind, np.zeros(3), population=4) for _ in range(2))
    with pytest.raises(ValueError, match="tell follows ask"):
        search.tell(np.zeros(4))
    search.ask()
    with pytest.raises(ValueError, match="no candidate has a finite fitness"):
        search.tell(np.full(4, np.nan))
    with pytest.raises(ValueError, match="shape"):
        search.tell(np.zeros(5))
    with pytest.raises(ValueError, match="shape"):
        search.tell(np.zeros(4), np.zeros((4, 2)))
    other.ask()
    search.tell(np.arange(4.0))
    other.tell(np.arange(4.0))
    assert search.generation == 1 and np.array_equal(search.ask(), other.ask())


# What is learnt


@every_search
def test_finds_the_maximum_of_a_sphere(kind):
    search = started(kind, np.zeros(10), population=16, sigma0=0.2)
    for _ in range(250):
        search.tell(sphere(search.ask()))
    assert np.abs(search.mean - 0.3).max() < 0.05


@every_search
def test_comes_nearer_to_the_maximum_of_a_noisy_sphere(kind):
    """Each value with an error as large as what candidates differ by, as a mean over few samples has."""
    noise = np.random.default_rng(0)
    search = started(kind, np.zeros(20), population=32, sigma0=0.1)
    for _ in range(150):
        search.tell(sphere(search.ask()) + noise.normal(0, 0.3, 32))
    assert np.linalg.norm(search.mean - 0.3) < 0.5 * np.linalg.norm(np.full(20, 0.3))


@every_search
def test_only_the_order_counts(kind):
    """Fitness has no unit: scores, log-probabilities and ratios are told alike."""
    one, other = (started(kind, np.zeros(6), population=8) for _ in range(2))
    for generation in range(5):
        values = sphere(one.ask())
        assert np.array_equal(other.ask(), one.ask()), generation
        one.tell(values)
        other.tell(np.exp(values) * 1000)
    assert one.mean.tobytes() == other.mean.tobytes()


# What is refused


@every_search
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 3}, "population must be at least 4"),
        ({"sigma0": 0.0}, "sigma0 must be above 0"),
        ({"sigma0": float("nan")}, "sigma0 must be above 0"),
        ({"seed": -1}, "seed must lie in 0 to 4294967295"),
        ({"sigma": 1.0}, "did you mean 'sigma0'"),
    ],
)
def test_bad_settings_are_one_clear_line(kind, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        config(kind, **settings)
    assert "\n" not in str(caught.value)


@every_search
@pytest.mark.parametrize("start", [np.zeros((2, 3)), np.zeros(1), np.array([0.0, np.nan])])
def test_a_start_must_be_one_finite_vector(kind, start):
    with pytest.raises(ValueError, match="vector") as caught:
        started(kind, start)
    assert "\n" not in str(caught.value)


@every_search
def test_an_odd_population_is_refused_with_pairs_and_a_restarts_is_rounded_up(kind):
    asked = config(kind, population=8)
    grown = asked.allowed_population(9)
    assert dataclasses.replace(asked, population=grown).population == grown
    if grown == 9:
        assert config(kind, population=9).population == 9
    else:
        assert grown == 10
        with pytest.raises(ValueError, match="population must be even.*not 9"):
            config(kind, population=9)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"algorithm": "cma"}, "search.algorithm: unknown search 'cma'; did you mean 'cma_es'"),
        (
            {"algorithm": "openai_es", "variant": "full"},
            "variant is an option of cma_es; openai_es has: alg",
        ),
        ({"learning_rate": 0.1}, "learning_rate is an option of openai_es; cma_es has: algorithm, population"),
        ({"algorithm": "openai_es", "learning_rat": 0.1}, "did you mean 'learning_rate'"),
        ({"algorithm": "openai_es", "beta1": 1.0}, "beta1 must be at least 0 and below 1, not 1.0"),
        ({"algorithm": 7}, "unknown search '7'"),
        ("cma_es", "expected a mapping of settings, found str"),
    ],
)
def test_a_jobs_search_is_closed(search, message):
    plain = {"name": "s", "model": {"path": "m"}, "tasks": {"source": "recall"}, "train": ["a"], "search": search}
    with pytest.raises(ValueError, match=message) as caught:
        from_mapping(JobSpec, plain, "job.yaml")
    assert str(caught.value).startswith("job.yaml.search") and "\n" not in str(caught.value)


def test_a_job_that_names_no_algorithm_has_cma_es():
    assert lookup.default() == lookup.read({"algorithm": "cma_es"}, "search") == job().search.__class__()
    plain = {"name": "s", "model": {"path": "m"}, "tasks": {"source": "recall"}, "train": ["a"]}
    assert from_mapping(JobSpec, plain, "job.yaml").search == lookup.default()
    other = from_mapping(JobSpec, plain | {"search": {"algorithm": "openai_es"}}, "job.yaml").search
    assert isinstance(other, lookup.named("openai_es").Config)


# In a job


@every_search
@pytest.mark.parametrize("known", [1, 4, 7])
def test_a_job_that_is_told_again_what_it_was_told_goes_on_to_the_same_bits(kind, known):
    spec = job(generations=7, search=config(kind, population=8, sigma0=0.05, seed=2))
    whole, records = run(spec)
    again, told = run(spec, past=records[:known])
    assert [r["generation"] for r in told] == list(range(known + 1, 8))
    assert timeless(again.generations) == timeless(whole.generations) and again.stages == whole.stages
    assert again.best.theta.tobytes() == whole.best.theta.tobytes()
    assert again.last.theta.tobytes() == whole.last.theta.tobytes()


@every_search
def test_restarts_and_stages_take_it_on(kind):
    stages = [{"train": ["residence"], "generations": 6}, {"train": ["topic"], "generations": 3, "sigma": "keep"}]
    plain = {
        "name": "s",
        "model": {"path": "m"},
        "tasks": {"source": "recall"},
        "stages": stages,
        "search": dataclasses.asdict(config(kind, population=8, sigma0=0.05)),
        "stop": {"patience": 1},
        "restarts": {"count": 1, "factor": 1.1},
        "fitness": {"samples": 2},
        "validation": {"every": 1, "samples": 2},
    }
    evolved, records = run(from_mapping(JobSpec, plain, "job.yaml"), Noisy(noise=2.0))
    allowed = config(kind, population=8).allowed_population(9)
    assert {r["population"] for r in records} == {8, allowed} and np.isfinite(evolved.best.theta).all()
    assert evolved.stages[1]["sigma_start"] == evolved.stages[0]["sigma_end"]
