"""One matrix of all policies: a new file in `namm_core/policies` inherits every test."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_core import MemoryCache, policies
from namm_core.policies import H2O, L2, ExpectedAttention, Full, Random, SnapKV
from tests.namm_core import reference_policies as reference
from tests.namm_core.policy_matrix import BUDGETED, INTERVAL, POLICIES

TOKENS = 150


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    return torch.randint(1, 97, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def generate(model, ids, policy, **options) -> tuple[torch.Tensor, MemoryCache]:
    with MemoryCache(model, policy) as cache:
        options = {"max_new_tokens": 12, "do_sample": False, **options}
        return model.generate(ids, past_key_values=cache, **options), cache


@pytest.mark.parametrize("name", POLICIES)
def test_one_call_equals_pieces(model, prompt, name):
    """Forgetting inside attention gives what feeding the prompt piece by piece gives."""
    whole, _ = generate(model, prompt, POLICIES[name]())
    with MemoryCache(model, POLICIES[name]()) as cache, torch.no_grad():
        for piece in prompt[:, :-1].split(13, dim=1):
            model(piece, past_key_values=cache)
        pieces = model.generate(prompt, past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert torch.equal(whole, pieces)


@pytest.mark.parametrize("interval", [1, 7, 24])
@pytest.mark.parametrize("name", POLICIES)
def test_every_interval_and_any_pieces(model, name, interval):
    """Positions held after a prompt, however it was cut: at once, token by token, or in pieces across updates."""
    if name.startswith("namm"):
        interval = 16 * -(-interval // 16)  # of whole hops
    # No token twice: rotation keeps a key's length, so that the order of equal tokens would be left to rounding.
    tokens, held = torch.randperm(97, generator=torch.Generator().manual_seed(0))[None, :64], []
    for size in (64, 1, 37):
        with MemoryCache(model, POLICIES[name](interval)) as cache, torch.no_grad():
            for piece in tokens.split(size, dim=1):
                model(piece, past_key_values=cache)
        held.append([[h.tolist() for h in cache.kept_positions(layer)[0]] for layer in range(2)])
    assert held[0] == held[1] == held[2]


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "oracle"])
def test_unequal_prompts_in_a_batch_equal_each_alone(model, prompt, name):
    """Left-padded as `generate` wants them, with an update of one row falling due amid the others."""
    lengths = (TOKENS, 70, 33)
    batch = torch.zeros(3, TOKENS, dtype=torch.int64)
    for row, length in enumerate(lengths):
        batch[row, TOKENS - length :] = prompt[0, :length]
    together, cache = generate(model, batch, POLICIES[name](), attention_mask=(batch > 0).long())
    for row, length in enumerate(lengths):
        alone, of_one = generate(model, prompt[:, :length], POLICIES[name]())
        assert torch.equal(together[row, TOKENS:], alone[0, length:])
        for layer in range(2):
            both = zip(cache.kept_positions(layer)[row], of_one.kept_positions(layer)[0], strict=True)
            assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("name", POLICIES)
def test_beams_move_the_whole_memory(model, prompt, name):
    """Beam search over a memory equals beam search that starts from as many separate copies of the prompt."""
    options = {"num_beams": 3, "max_new_tokens": 6}
    found, cache = generate(model, prompt, POLICIES[name](), **options)
    again, _ = generate(model, prompt, POLICIES[name](), **options)
    assert torch.equal(found, again)
    if name == "full":
        assert torch.equal(found, model.generate(prompt, do_sample=False, **options))
    # All beams share the prompt, so they must hold the same part of it, wherever they were moved to.
    for row in cache.kept_positions(0)[1:]:
        for head, first in zip(row, cache.kept_positions(0)[0], strict=True):
            assert torch.equal(head[head < TOKENS], first[first < TOKENS])


@pytest.mark.parametrize("name", BUDGETED)
def test_budget_is_met_exactly(model, prompt, name):
    """Right after an update every head of every layer holds its budget, or all it has seen."""
    with MemoryCache(model, POLICIES[name]()) as cache, torch.no_grad():
        model(prompt[:, : 4 * INTERVAL], past_key_values=cache)
    assert (cache.kept_counts() == 20).all()


@pytest.mark.parametrize("name", BUDGETED)
def test_rows_have_budgets_of_their_own(model, prompt, name):
    """In tokens or as fractions; a row holds what it holds alone."""
    tokens = prompt[:, : 4 * INTERVAL]
    for budgets, expected in ([10, 40], [10, 40]), ([0.25, 0.5], [32, 64]):
        policy = policies.named(name)(torch.tensor(budgets), INTERVAL)
        with MemoryCache(model, policy) as cache, torch.no_grad():
            model(tokens.expand(2, -1), past_key_values=cache)
        for row in range(2):
            assert cache.kept_counts()[:, row].unique().tolist() == expected[row : row + 1]
            with MemoryCache(model, policies.named(name)(budgets[row], INTERVAL)) as alone, torch.no_grad():
                model(tokens, past_key_values=alone)
            for layer in range(2):
                both = zip(cache.kept_positions(layer)[row], alone.kept_positions(layer)[0], strict=True)
                assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("name", BUDGETED)
def test_a_fraction_is_of_what_the_row_has_seen(model, prompt, name):
    """Rows of unequal length, in one batch: 0.4 of 32, 64, 96 or 128 tokens, and the tail since."""
    lengths = (TOKENS, 70, 33)
    batch = torch.zeros(3, TOKENS, dtype=torch.int64)
    for row, length in enumerate(lengths):
        batch[row, TOKENS - length :] = prompt[0, :length]
    with MemoryCache(model, policies.named(name)(0.4, INTERVAL)) as cache, torch.no_grad():
        model(batch, attention_mask=(batch > 0).long(), past_key_values=cache)
    for row, expected in enumerate((51 + 22, 26 + 6, 13 + 1)):
        assert (cache.kept_counts()[:, row] == expected).all()


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("budget", [1, 2, 5])
def test_a_budget_below_sinks_or_window_is_met_too(model, prompt, name, budget):
    with MemoryCache(model, policies.named(name)(budget, INTERVAL)) as cache, torch.no_grad():
        model(prompt[:, : 2 * INTERVAL], past_key_values=cache)
    assert (cache.kept_counts() == budget).all()
    assert all(int(head[-1]) == 2 * INTERVAL - 1 for layer in range(2) for head in cache.kept_positions(layer)[0])


@pytest.mark.parametrize("name", BUDGETED)
def test_all_of_it_is_the_full_cache(model, prompt, name):
    found, _ = generate(model, prompt, policies.named(name)(1.0, INTERVAL))
    assert torch.equal(found, model.generate(prompt, do_sample=False, max_new_tokens=12))


@pytest.mark.parametrize("name", POLICIES)
def test_half_precision(model, prompt, name):
    """A cache in bfloat16 is forgotten from as any other: finite logits, and no more held than in float32."""
    half, tokens = copy.deepcopy(model).bfloat16(), prompt[:, : 2 * INTERVAL]
    with MemoryCache(half, POLICIES[name]()) as cache, torch.no_grad():
        logits = half(tokens, past_key_values=cache).logits
    assert logits.isfinite().all()
    if not name.startswith("namm"):
        with MemoryCache(model, POLICIES[name]()) as single, torch.no_grad():
            model(tokens, past_key_values=single)
        assert torch.equal(cache.kept_counts(), single.kept_counts())


ORACLES = {
    "h2o": (partial(H2O, 20), partial(reference.h2o, tokens=20)),
    "tova": (partial(policies.named("tova"), 20), partial(reference.tova, tokens=20)),
    "snapkv": (partial(SnapKV, 20, window=8), partial(reference.snapkv, tokens=20, window=8, pooling="max")),
    "snapkv-avg": (
        partial(SnapKV, 20, window=8, pooling="avg"),
        partial(reference.snapkv, tokens=20, window=8, pooling="avg"),
    ),
    "snapkv-wide": (partial(SnapKV, 45), partial(reference.snapkv, tokens=45, window=32, pooling="max")),
    "keydiff": (partial(policies.named("keydiff"), 20), partial(reference.keydiff, tokens=20)),
    "expected_attention": (partial(ExpectedAttention, 20), partial(reference.expected_attention, tokens=20)),
}


@pytest.mark.parametrize("interval", [16, INTERVAL])
@pytest.mark.parametrize("name", ORACLES)
def test_positions_kept_are_those_of_the_formulas(model, prompt, name, interval):
    """Over several updates, from the whole text's attention, keys, values and unrotated queries."""
    make, decide = ORACLES[name]
    text = prompt[0, : 4 * INTERVAL]
    expected = reference.run(model, text, interval, decide)
    with MemoryCache(model, make(update_interval=interval)) as cache, torch.no_grad():
        for piece in text.split(27):
            model(piece[None], past_key_values=cache)
    for layer in range(2):
        for head in range(2):
            assert cache.kept_positions(layer)[0][head].tolist() == expected[layer][head].tolist()


def test_what_the_baselines_keep(model, prompt):
    """Each keeps what its paper says, checked on positions."""
    kept = {}
    for name in ("streaming", "l2", "oracle"):
        with MemoryCache(model, POLICIES[name]()) as cache, torch.no_grad():
            model(prompt[:, : 4 * INTERVAL], past_key_values=cache)
        kept[name] = cache
    end = 4 * INTERVAL
    assert kept["streaming"].kept_positions(1)[0][0].tolist() == [0, 1, 2, 3, *range(end - 16, end)]
    assert kept["oracle"].kept_positions(0)[0][1].tolist() == [0, 1, 2, 3, 5, 17, 60, end - 1]
    with MemoryCache(model, Full(10**6)) as full, torch.no_grad():
        model(prompt[:, :INTERVAL], past_key_values=full)
    with MemoryCache(model, L2(20, INTERVAL)) as cache, torch.no_grad():
        model(prompt[:, :INTERVAL], past_key_values=cache)
    norms = full.layers[0].stored.keys[0, 1, :-1].norm(dim=-1)
    expected = sorted(norms.argsort()[:19].tolist()) + [INTERVAL - 1]  # the newest always stays
    assert cache.kept_positions(0)[0][1].tolist() == expected


@pytest.mark.parametrize("per_query", [False, True])
def test_h2o_counts_all_attention_that_a_key_received(model, prompt, per_query):
    """Against the full attention matrix of the stock eager model, before anything was forgotten."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(prompt[:, :INTERVAL], output_attentions=True).attentions[1][0]
    received = weights.view(2, 2, INTERVAL, INTERVAL).mean(1).sum(1)  # mean over the query group
    if per_query:
        received = received / torch.arange(INTERVAL, 0, -1)
    model.set_attn_implementation("sdpa")
    with MemoryCache(model, H2O(20, INTERVAL, per_query=per_query)) as cache, torch.no_grad():
        model(prompt[:, :INTERVAL], past_key_values=cache)
    for head in range(2):
        older = received[head, : INTERVAL - 10]
        expected = sorted(older.argsort(descending=True)[:10].tolist()) + list(range(INTERVAL - 10, INTERVAL))
        assert cache.kept_positions(1)[0][head].tolist() == expected


def test_random_keeps_the_same_ranks_as_the_text_grows(model, prompt):
    with MemoryCache(model, Random(20, INTERVAL)) as cache, torch.no_grad():
        model(prompt[:, : 2 * INTERVAL], past_key_values=cache)
        before = set(cache.kept_positions(0)[0][0].tolist())
        model(prompt[:, 2 * INTERVAL : 3 * INTERVAL], past_key_values=cache)
    after = set(cache.kept_positions(0)[0][0].tolist())
    assert {p for p in after if p < 2 * INTERVAL} <= before and len(after) == 20
    other = Random(20, INTERVAL, seed=1)
    with MemoryCache(model, other) as cache, torch.no_grad():
        model(prompt[:, : 2 * INTERVAL], past_key_values=cache)
    assert set(cache.kept_positions(0)[0][0].tolist()) != before
