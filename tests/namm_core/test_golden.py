"""The fast code against recorded runs of the public implementation: intermediates and whole generations.

Tolerances on float32 CPU: kept sets and tokens equal, scores within 1e-4 (1e-3 at 512 new tokens),
logits within 1e-4.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig
from tests.namm_core.recordings import COMPONENTS, RUNS, Component, Run

LAYERS = range(3)


def memory(theta, statistics, **config) -> Namm:
    namm = Namm(NammConfig(selection="padded", **config), theta)
    if statistics is not None:
        namm.statistics = FeatureStatistics(
            mean=torch.tensor(statistics.mean, dtype=torch.float32),
            var=torch.tensor(statistics.var, dtype=torch.float32),
            count=statistics.count,
        )
    return namm


def assert_close(actual, expected, tolerance, what):
    worst = np.abs(np.asarray(actual) - np.asarray(expected)).max()
    assert worst <= tolerance, f"{what}: largest difference {worst:.2e}, allowed {tolerance:.0e}"


def take(namm, update, state=None):
    """One step from a recorded update's inputs."""
    attention = torch.tensor(update.attention, dtype=torch.float32)
    return namm.step(attention, torch.tensor(update.positions), state)


# --- components


@pytest.mark.parametrize("name", COMPONENTS)
def test_three_consecutive_updates(golden, name):
    component = Component(golden, name)
    namm = memory(component.theta[0], component.statistics, update_interval=component.interval)
    state = None
    for update in component.updates():
        step = take(namm, update, state)
        assert_close(step.average, update.average, 5e-6, "averages")
        assert_close(step.features, update.features, component.tolerance, "features")
        assert_close(step.scores, update.scores, component.tolerance, "scores")
        for head, kept in enumerate(update.retained[0]):
            assert torch.nonzero(step.keep[0, head]).flatten().tolist() == kept.tolist()
        state = step.state


def test_each_row_of_a_batch_has_its_own_theta(golden):
    component = Component(golden, "component_b2_n64_norm")
    first = next(component.updates())
    step = take(memory(component.theta, component.statistics, update_interval=component.interval), first)
    assert_close(step.average, first.average, 5e-6, "averages")
    assert_close(step.features, first.features, component.tolerance, "features")
    assert_close(step.scores, first.scores, component.tolerance, "scores")


def test_statistics_merge_over_updates(golden):
    component = Component(golden, "component_stats_n64")
    namm = memory(component.theta[0], None, update_interval=component.interval)
    state = running = None
    for update in component.updates():
        namm.statistics = None
        step = take(namm, update, state)
        group = FeatureStatistics.of(step.average)
        running = running.merge(group) if running else group
        namm.statistics = running
        assert_close(take(namm, update, state).features, update.features, component.tolerance, "features")
        assert step.keep.all(), "theta = 0 scores 0, and 0 keeps"
        state = step.state
    assert_close(running.mean, component.statistics.mean, 1e-6, "mean")
    assert_close(running.var, component.statistics.var, 1e-6, "variance")
    assert running.count == component.statistics.count


# --- whole generations


@pytest.fixture(scope="module")
def model(golden):
    return AutoModelForCausalLM.from_pretrained(golden / "tiny_llama", dtype=torch.float32).eval()


def assert_kept(cache, run, fed, row=0):
    for layer in LAYERS:
        kept = [head.tolist() for head in cache.kept_positions(layer)[row]]
        assert kept == run.kept(layer, fed), f"layer {layer} after {fed} tokens"


def assert_logits(logits, run, which=""):
    """logits (tokens, vocabulary), from position 0 on."""
    recorded, positions = run.logits(which)
    known = positions < len(logits)
    assert known.any()
    assert_close(logits[positions[known]], recorded[known], 1e-4, "logits")


def feed(model, cache, tokens, size, on_update=None):
    """Logits (tokens, vocabulary) of forward calls of `size` tokens each."""
    logits = []
    for start in range(0, tokens.shape[1], size):
        piece = torch.tensor(tokens[:, start : start + size])
        with torch.no_grad():
            logits.append(model(piece, past_key_values=cache).logits[0])
        fed = start + piece.shape[1]
        if on_update and fed % Run.interval == 0:
            on_update(fed)
    return torch.cat(logits)


@pytest.mark.parametrize("name", RUNS)
def test_stock_generate(golden, model, name):
    run = Run(golden, name)
    cache = MemoryCache(model, memory(run.theta, run.statistics))
    ids = torch.tensor(run.prompt)
    out = model.generate(ids, past_key_values=cache, max_new_tokens=32, do_sample=False)
    assert out[:, ids.shape[1] :].tolist() == run.generated.tolist()
    fed = ids.shape[1] + 31
    assert_kept(cache, run, fed)
    assert cache.seen == fed


@pytest.mark.parametrize("size", [128, 512, 10_000])
@pytest.mark.parametrize("name", RUNS)
def test_prefill_in_pieces_or_at_once_then_decode(golden, model, name, size):
    run = Run(golden, name)
    cache = MemoryCache(model, memory(run.theta, run.statistics))
    updates = []

    def check(fed):
        assert_kept(cache, run, fed)
        updates.append(fed)

    prefill = feed(model, cache, run.prompt, size, check)
    if size <= Run.interval:
        assert updates == [512, 1024, 1536][: run.prompt.shape[1] // 512]
    assert_kept(cache, run, run.prompt.shape[1])
    decode = []
    for fed in range(run.prompt.shape[1], run.fed.shape[1]):
        token = torch.tensor(run.fed[:, fed : fed + 1])
        with torch.no_grad():
            decode.append(model(token, past_key_values=cache).logits[0])
        if (fed + 1) % Run.interval == 0:
            assert_kept(cache, run, fed + 1)
    assert_kept(cache, run, run.fed.shape[1])
    assert_logits(torch.cat([prefill, *decode]), run)


@pytest.mark.parametrize("name", RUNS)
def test_prompt_and_answer_in_one_forward(golden, model, name):
    run = Run(golden, name)
    cache = MemoryCache(model, memory(run.theta, run.statistics))
    assert_logits(feed(model, cache, run.fed, 10_000), run)
    assert_kept(cache, run, run.fed.shape[1])


@pytest.mark.parametrize("names", [["e2e_norm_A", "e2e_norm_C", "e2e_norm_B"], ["e2e_raw_C", "e2e_raw_A"]])
def test_unequal_prompts_in_one_batch(golden, model, names):
    runs = [Run(golden, name) for name in names]
    longest = max(run.prompt.shape[1] for run in runs)
    ids = torch.zeros(len(runs), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, run in enumerate(runs):
        ids[row, longest - run.prompt.shape[1] :] = torch.tensor(run.prompt[0])
        mask[row, longest - run.prompt.shape[1] :] = 1
    theta = np.stack([run.theta for run in runs])
    cache = MemoryCache(model, memory(theta, runs[0].statistics))
    out = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=32, do_sample=False)
    for row, run in enumerate(runs):
        assert out[row, longest:].tolist() == run.generated[0].tolist(), names[row]
        assert_kept(cache, run, run.prompt.shape[1] + 31, row)


@pytest.mark.parametrize("selection", ["padded", "ragged"])
@pytest.mark.parametrize("name", ["e2e_norm_A", "e2e_norm_C"])
def test_keeping_everything_is_the_full_cache(golden, model, name, selection):
    run = Run(golden, name)
    namm = Namm(NammConfig(selection=selection), np.zeros(4172, dtype=np.float32))  # every score is 0: kept
    ids = torch.tensor(run.prompt)
    assert_logits(feed(model, MemoryCache(model, namm), run.prompt, 10_000), run, "full")
    cache = MemoryCache(model, namm)
    out = model.generate(ids, past_key_values=cache, max_new_tokens=32, do_sample=False)
    assert out[:, ids.shape[1] :].tolist() == run.tensors["full_generated"].tolist()
    everything = list(range(ids.shape[1] + 31))
    assert all(head.tolist() == everything for layer in LAYERS for head in cache.kept_positions(layer)[0])
