"""`MemoryCache` in a model against the oracle in the same model: both selections, any feeding, any batch."""

from functools import partial

import numpy as np
import pytest
import torch

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig, StatisticsCollector
from tests.namm_core.reference import NUM_PARAMETERS, Reference
from tests.namm_core.reference_model import run, tiny_llama

INTERVAL = 32
LENGTHS = (110, 83, 32, 17)  # two with a tail, one that ends at an update, one before any


def text(length: int, seed: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(1, 64, length))


def parameters(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (rows, NUM_PARAMETERS)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(seed=0)


@pytest.fixture(scope="module")
def statistics(model):
    """Frozen statistics, as a full cache collects them."""
    zeros = np.zeros(NUM_PARAMETERS)
    return run(model, text(96, seed=9), INTERVAL, lambda: Reference(zeros, "padded")).statistics


@pytest.fixture(scope="module", params=["padded", "ragged"])
def selection(request):
    return request.param


@pytest.fixture(scope="module")
def outcomes(model, statistics, selection):
    """[row] of the oracle's outcome: each row has its own text, length and theta."""
    out = []
    for row, (length, theta) in enumerate(zip(LENGTHS, parameters(len(LENGTHS), seed=7), strict=True)):
        memory = partial(Reference, theta, selection, statistics)
        oracle = run(model, text(length, row), INTERVAL, memory)
        assert oracle.margin > 1e-3, "choose another seed: float32 may decide this one either way"
        out.append(oracle)
    kept = [len(head) for oracle in out for layer in oracle.kept for head in layer]
    assert len(set(kept)) > 5 and sum(kept) < 4 * sum(LENGTHS) * 0.7, "the memories should forget, and differ"
    return out


@pytest.fixture
def cache_for(model, statistics, selection):
    """Makes a cache with the fast code's memory, one theta for all rows or one each."""

    def make(theta, tiled: bool | None = None) -> MemoryCache:
        namm = Namm(NammConfig(update_interval=INTERVAL, selection=selection), theta)
        namm.statistics = FeatureStatistics(statistics.mean, statistics.var, statistics.count)
        return MemoryCache(model, namm, tiled)

    return make


def assert_kept(cache, outcomes):
    for layer in range(2):
        for row, oracle in enumerate(outcomes):
            held = [head.tolist() for head in cache.kept_positions(layer)[row]]
            assert held == oracle.kept[layer], f"layer {layer}, row {row}"


@pytest.mark.parametrize("size", [1, 7, 32, 45, 200])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("tiled", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_one_text_fed_in_pieces(model, cache_for, outcomes, row, size, tiled):
    tokens = text(LENGTHS[row], row)[None]
    with cache_for(parameters(len(LENGTHS), seed=7)[row], tiled) as cache, torch.no_grad():
        logits = [model(piece, past_key_values=cache).logits[0] for piece in tokens.split(size, dim=1)]
        assert_kept(cache, outcomes[row : row + 1])
    np.testing.assert_allclose(torch.cat(logits).numpy(), outcomes[row].logits, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_unequal_texts_in_one_batch(model, cache_for, outcomes, side):
    longest = max(LENGTHS)
    ids, mask = torch.zeros(2, len(LENGTHS), longest, dtype=torch.long)
    spans = [(longest - n, longest) if side == "left" else (0, n) for n in LENGTHS]
    for row, (start, end) in enumerate(spans):
        ids[row, start:end] = text(end - start, row)
        mask[row, start:end] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with cache_for(parameters(len(LENGTHS), seed=7)) as cache, torch.no_grad():
        logits = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        assert_kept(cache, outcomes)
    for row, (start, end) in enumerate(spans):
        np.testing.assert_allclose(logits[row, start:end].numpy(), outcomes[row].logits, atol=1e-4)


@pytest.mark.parametrize("size", [1, 4, 15])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_go_on_at_counts_of_their_own(model, cache_for, outcomes, side, size):
    """Each row is updated when its own count is full: in another step than its mates, or amid one."""
    prompts = [n - 15 for n in LENGTHS]
    longest = max(prompts)
    texts = [text(n, row) for row, n in enumerate(LENGTHS)]
    ids, mask = torch.zeros(2, len(LENGTHS), longest, dtype=torch.long)
    for row, n in enumerate(prompts):
        start = longest - n if side == "left" else 0
        ids[row, start : start + n] = texts[row][:n]
        mask[row, start : start + n] = 1
    with cache_for(parameters(len(LENGTHS), seed=7)) as cache, torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        for step in torch.arange(15).split(size):
            positions = torch.tensor(prompts)[:, None] + step
            ids = torch.stack([texts[row][p] for row, p in enumerate(positions)])
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            logits = model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
            for row, oracle in enumerate(outcomes):
                np.testing.assert_allclose(logits[row], oracle.logits[positions[row].numpy()], atol=1e-4)
        assert_kept(cache, outcomes)


def test_collected_statistics_pool_layers_heads_and_updates(model):
    """A row that is not due when its batch-mate is adds nothing."""
    lengths = (110, 64)
    zeros, pooled = np.zeros(NUM_PARAMETERS), None
    ids, mask = torch.zeros(2, 2, max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = text(length, row), 1
        oracle = run(model, text(length, row), INTERVAL, lambda: Reference(zeros, "padded"))
        pooled = oracle.statistics if pooled is None else pooled.merge(oracle.statistics)
    collector = StatisticsCollector(NammConfig(update_interval=INTERVAL))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with MemoryCache(model, collector) as cache, torch.no_grad():
        model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    assert collector.collected.count == pooled.count
    np.testing.assert_allclose(collector.collected.mean, pooled.mean, atol=1e-6)
    np.testing.assert_allclose(collector.collected.var, pooled.var, atol=1e-6)
