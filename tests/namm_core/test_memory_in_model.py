"""`MemoryCache` in a model against the oracle in the same model: both selections, any feeding, any batch."""

import numpy as np
import pytest
import torch
from reference import NUM_PARAMETERS, Reference
from reference_model import run, tiny_llama

from namm_core import MemoryCache, Namm, NammConfig, StatisticsCollector

INTERVAL = 32
LENGTHS = (110, 83, 32, 17)  # two with a tail, one that ends at an update, one before any


def text(length: int, seed: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(1, 64, length))


def parameters(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (rows, NUM_PARAMETERS)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(seed=0)


@pytest.fixture(scope="module", params=["padded", "ragged"])
def selection(request):
    return request.param


@pytest.fixture(scope="module")
def outcomes(model, selection):
    """[row] of the oracle's outcome: each row has its own text, length and theta."""
    out = []
    for row, (length, theta) in enumerate(zip(LENGTHS, parameters(len(LENGTHS), seed=1), strict=True)):
        oracle = run(model, text(length, row), INTERVAL, lambda theta=theta: Reference(theta, selection))
        assert oracle.margin > 1e-5, "choose another seed: float32 may decide this one either way"
        out.append(oracle)
    counts = {len(head) for oracle in out for layer in oracle.kept for head in layer}
    assert len(counts) > 4, "the memories should differ in what they hold"
    return out


def cache_for(model, selection, theta) -> MemoryCache:
    return MemoryCache(model, Namm(NammConfig(update_interval=INTERVAL, selection=selection), theta))


def assert_kept(cache, outcomes):
    for layer in range(2):
        for row, oracle in enumerate(outcomes):
            held = [head.tolist() for head in cache.kept_positions(layer)[row]]
            assert held == oracle.kept[layer], f"layer {layer}, row {row}"


@pytest.mark.parametrize("size", [1, 7, 32, 45, 200])
@pytest.mark.parametrize("row", [0, 1])
def test_one_text_fed_in_pieces(model, selection, outcomes, row, size):
    tokens = text(LENGTHS[row], row)[None]
    with cache_for(model, selection, parameters(len(LENGTHS), seed=1)[row]) as cache, torch.no_grad():
        logits = [model(piece, past_key_values=cache).logits[0] for piece in tokens.split(size, dim=1)]
        assert_kept(cache, outcomes[row : row + 1])
    np.testing.assert_allclose(torch.cat(logits).numpy(), outcomes[row].logits, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_unequal_texts_in_one_batch(model, selection, outcomes, side):
    longest = max(LENGTHS)
    ids, mask = torch.zeros(2, len(LENGTHS), longest, dtype=torch.long)
    spans = [(longest - n, longest) if side == "left" else (0, n) for n in LENGTHS]
    for row, (start, end) in enumerate(spans):
        ids[row, start:end] = text(end - start, row)
        mask[row, start:end] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with cache_for(model, selection, parameters(len(LENGTHS), seed=1)) as cache, torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        assert_kept(cache, outcomes)
    for row, (start, end) in enumerate(spans):
        np.testing.assert_allclose(logits[row, start:end].numpy(), outcomes[row].logits, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_decode_at_counts_of_their_own(model, selection, outcomes, side):
    """Each row is updated when its own count is full, which is in another step for each."""
    steps = 15
    prompts = [n - steps for n in LENGTHS]
    longest = max(prompts)
    texts = [text(n, row) for row, n in enumerate(LENGTHS)]
    ids, mask = torch.zeros(2, len(LENGTHS), longest, dtype=torch.long)
    for row, n in enumerate(prompts):
        start = longest - n if side == "left" else 0
        ids[row, start : start + n] = texts[row][:n]
        mask[row, start : start + n] = 1
    with cache_for(model, selection, parameters(len(LENGTHS), seed=1)) as cache, torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        for step in range(steps):
            ids = torch.stack([texts[row][n + step] for row, n in enumerate(prompts)])[:, None]
            positions = torch.tensor(prompts)[:, None] + step
            mask = torch.cat([mask, torch.ones(len(LENGTHS), 1, dtype=torch.long)], dim=1)
            logits = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
            for row, n in enumerate(prompts):
                expected = outcomes[row].logits[n + step]
                np.testing.assert_allclose(logits[row, 0].numpy(), expected, atol=1e-4)
        assert_kept(cache, outcomes)


def test_collected_statistics_pool_layers_heads_and_updates(model):
    tokens = text(LENGTHS[0], 0)
    zeros = np.zeros(NUM_PARAMETERS)
    oracle = run(model, tokens, INTERVAL, lambda: Reference(zeros, "padded"))
    collector = StatisticsCollector(NammConfig(update_interval=INTERVAL))
    with MemoryCache(model, collector) as cache, torch.no_grad():
        model(tokens[None], past_key_values=cache)
    assert collector.collected.count == oracle.statistics.count
    np.testing.assert_allclose(collector.collected.mean, oracle.statistics.mean, atol=1e-6)
    np.testing.assert_allclose(collector.collected.var, oracle.statistics.var, atol=1e-6)
