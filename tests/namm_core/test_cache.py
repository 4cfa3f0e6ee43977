"""The cache's own promises: memory given back, rows moved together, the model left as it was."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import combinations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_core import MemoryCache, Namm, NammConfig
from namm_core.answering import answer
from namm_core.policies import Full, Streaming


@pytest.fixture
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
    )
    return LlamaForCausalLM(config).eval()


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def thetas(rows: int) -> torch.Tensor:
    return torch.randn(rows, 4172, generator=torch.Generator().manual_seed(5)) * 0.1


def test_forgotten_tokens_give_their_bytes_back(model):
    with MemoryCache(model, Streaming(16, 64)) as cache, torch.no_grad():
        model(tokens(1, 256), past_key_values=cache)
    per_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, KV heads, head size, bytes
    assert cache.nbytes == 16 * per_token
    assert cache.seen == 256 and cache.fed == [256]


def test_a_population_is_a_batch(model):
    """Rows (candidate, sample) with a theta each equal one call per candidate."""
    ids, theta, config = tokens(2, 130), thetas(3), NammConfig(update_interval=32)
    with MemoryCache(model, Namm(config, theta.repeat_interleave(2, 0))) as cache, torch.no_grad():
        together = model(ids.repeat(3, 1), past_key_values=cache).logits[:, -1].view(3, 2, -1)
    for candidate in range(3):
        with MemoryCache(model, Namm(config, theta[candidate])) as cache, torch.no_grad():
            alone = model(ids, past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(together[candidate], alone, atol=2e-5, rtol=0)


def test_rows_move_with_their_theta_and_counters(model):
    ids, theta, config = tokens(3, 100), thetas(3), NammConfig(update_interval=32)
    order = torch.tensor([2, 0, 0, 1])
    with MemoryCache(model, Namm(config, theta)) as cache, torch.no_grad():
        model(ids, past_key_values=cache)
        cache.reorder_cache(order)
        model(tokens(1, 60, seed=9).expand(4, -1), past_key_values=cache)
    for row, source in enumerate(order.tolist()):
        with MemoryCache(model, Namm(config, theta[source])) as alone, torch.no_grad():
            model(ids[source : source + 1], past_key_values=alone)
            model(tokens(1, 60, seed=9), past_key_values=alone)
        for moved, kept in zip(cache.kept_positions(1)[row], alone.kept_positions(1)[0], strict=True):
            assert torch.equal(moved, kept)


def test_two_caches_take_turns_on_one_model(model):
    ids, config = tokens(1, 150), NammConfig(update_interval=32)

    def alone(theta):
        with MemoryCache(model, Namm(config, theta)) as cache:
            return model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False)

    first, second = (MemoryCache(model, Namm(config, theta)) for theta in thetas(2))
    with torch.no_grad():
        for piece in ids[:, :-1].split(37, dim=1):
            for cache in (first, second):
                model(piece, past_key_values=cache)
    for cache, theta in zip((first, second), thetas(2), strict=True):
        got = model.generate(ids, past_key_values=cache, max_new_tokens=8, do_sample=False)
        assert torch.equal(got, alone(theta))


def test_the_model_gets_its_attention_back(model):
    before = model.config._attn_implementation
    ids = tokens(1, 40)
    with torch.no_grad():
        stock = model(ids).logits
        with MemoryCache(model, Full(16)) as cache:
            assert model.config._attn_implementation == "namm"
            ours = model(ids, past_key_values=cache).logits
            without = model(ids, attention_mask=torch.ones_like(ids)).logits  # no cache of ours in this call
        assert model.config._attn_implementation == before
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)
    torch.testing.assert_close(without, stock, atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match="3 rows .* do not divide a batch of 2"):
        model(tokens(2, 10), past_key_values=MemoryCache(model, Namm(NammConfig(), thetas(3))))
    cache = MemoryCache(model, Full())
    model(tokens(2, 10), past_key_values=cache)
    with pytest.raises(ValueError, match="holds 2 rows, the input has 3"):
        model(tokens(3, 10), past_key_values=cache)
    with pytest.raises(ValueError, match="2D padding mask"):
        mask = torch.zeros(1, 1, 5, 5)
        model(tokens(1, 5), attention_mask=mask, past_key_values=MemoryCache(model, Full()))


def test_saved_and_loaded(model, tmp_path):
    from namm_core import FeatureStatistics

    namm = Namm(NammConfig(update_interval=64), thetas(1)[0], FeatureStatistics([0.5] * 17, [2.0] * 17, 99))
    namm.save_pretrained(tmp_path / "memory")
    twin = Namm.from_pretrained(tmp_path / "memory")
    assert twin.config == namm.config and torch.equal(twin.theta, namm.theta)
    assert torch.equal(twin.statistics.var, namm.statistics.var) and twin.statistics.count == 99
    (tmp_path / "memory" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="is no saved NAMM"):
        Namm.from_pretrained(tmp_path / "memory")
    with pytest.raises(ValueError, match="needs \\(4172,\\)"):
        Namm(NammConfig(), torch.zeros(4171))


def test_answers_are_those_of_generate(model):
    """Greedy tokens, the reference's log-probability and the kept fraction, for unequal prompts in one call."""
    prompts = [tokens(1, n, seed=n)[0] for n in (100, 77, 64)]
    references = [torch.tensor([3, 4]), torch.tensor([5]), torch.tensor([7, 8])]
    config = NammConfig(update_interval=32)
    theta = thetas(1)[0]
    with MemoryCache(model, Namm(config, theta)) as cache:
        answers = answer(model, prompts, references, cache, max_new_tokens=5)
    for prompt, reference, got in zip(prompts, references, answers, strict=True):
        with MemoryCache(model, Namm(config, theta)) as cache:
            ids = model.generate(prompt[None], past_key_values=cache, max_new_tokens=5, do_sample=False)
        assert got.tokens == ids[0, len(prompt) :].tolist()
        with MemoryCache(model, Namm(config, theta)) as cache, torch.no_grad():
            first = model(prompt[None], past_key_values=cache).logits[:, -1]
            kept = cache.kept_counts().double().mean((1, 2)) / len(prompt)
            rest = model(reference[None, :-1], past_key_values=cache).logits[0] if len(reference) > 1 else first[:0]
        expected = torch.cat([first, rest]).log_softmax(-1).gather(-1, reference[:, None]).mean()
        assert got.logprob == pytest.approx(float(expected), abs=1e-4)
        assert got.kept == pytest.approx(kept.tolist())


@pytest.mark.parametrize("memory", [False, True])
def test_rows_that_have_stopped_leave_the_batch(model, memory):
    """The tokens of all rows are those of rows that decode alone; the batch shrinks on the way."""
    prompts = [tokens(1, n, seed=n)[0] for n in (100, 77, 64, 90)]
    namm = Namm(NammConfig(update_interval=32), thetas(1)[0])

    def answered(rows, stop, sizes=None):
        handle = model.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
        )
        try:
            with MemoryCache(model, namm) if memory else nullcontext() as cache:
                found = answer(model, rows, [torch.tensor([3])] * len(rows), cache, 24, stop)
        finally:
            handle.remove()
        return [row.tokens for row in found]

    alone = [answered([prompt], (), [])[0] for prompt in prompts]

    def until(stop):
        return [row[: min((i for i, token in enumerate(row) if token in stop), default=24)] for row in alone]

    # Two tokens by which half of the rows stop a few steps before the others.
    stop = max(combinations(range(97), 2), key=lambda stop: -(s := sorted(map(len, until(stop))))[1] + min(s[2], 8))
    sizes: list[int] = []
    assert answered(prompts, stop, sizes) == until(stop)
    assert sizes[0] == 4 and sizes[-1] <= 2


def test_the_full_cache_baseline_is_the_stock_model(model):
    prompts = [tokens(1, n, seed=n)[0] for n in (50, 31)]
    answers = answer(model, prompts, [torch.tensor([3, 9])] * 2, None, max_new_tokens=6)
    for prompt, got in zip(prompts, answers, strict=True):
        ids = model.generate(prompt[None], max_new_tokens=6, do_sample=False)
        assert got.tokens == ids[0, len(prompt) :].tolist() and got.kept == [1.0, 1.0]
        with torch.no_grad():
            logits = model(torch.cat([prompt, torch.tensor([3])])[None]).logits[0, -2:]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor([[3], [9]])).mean()
        assert got.logprob == pytest.approx(float(expected), abs=1e-4)


def test_candidates_share_what_precedes_the_first_update(model):
    """Three candidates on two samples of unequal length, computed together, answer as each does alone."""
    theta, config = thetas(3), NammConfig(update_interval=32)
    prompts, references = [tokens(1, 130)[0], tokens(1, 97, seed=2)[0]], [torch.tensor([3, 9])] * 2
    with MemoryCache(model, Namm(config, theta.repeat_interleave(2, 0))) as cache:
        together = answer(model, prompts * 3, references * 3, cache, max_new_tokens=6)
    assert len({a.kept[1] for a in together}) > 3, "candidates should differ, or this shows nothing"
    for row, got in enumerate(together):
        with MemoryCache(model, Namm(config, theta[row // 2])) as cache:
            alone = answer(model, [prompts[row % 2]], references[:1], cache, max_new_tokens=6)[0]
        assert (got.tokens, got.kept) == (alone.tokens, alone.kept)
        assert got.logprob == pytest.approx(alone.logprob, abs=2e-5)
