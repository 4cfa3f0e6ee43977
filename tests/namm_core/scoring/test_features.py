"""Features: what each gives, against NumPy; and the rules that are points of a memory's space, in a real model."""

import dataclasses

import numpy as np
import pytest
import torch

from namm_core import MemoryCache, Namm, NammConfig, policies
from namm_core.protocols import Entries, Held, View
from namm_core.scoring import rules
from namm_core.scoring.embedding import ages
from namm_core.scoring.feature_set import Features
from namm_core.scoring.pooling import pooled
from tests.tiny_models import tiny_llama

ALL = (
    "age",
    "bands",
    "expected_attention",
    "key_norm",
    "key_similarity",
    "relative_age",
    "spectrum",
    "value_norm",
    "value_similarity",
)
INTERVAL = 32
RULES: dict[str, dict] = {
    "expected_attention": {"epsilon": 0.0, "floor": 2.5},
    "keydiff": {},
    "high_norm": {},
    "l2": {},
}
"""The rules, and their settings as the memory has them."""


def config(**given) -> NammConfig:
    chosen = {"update_interval": INTERVAL, "selection": "budget", "features": ALL, "scorer": "linear"}
    return NammConfig(**(chosen | given))


def view(random: torch.Generator, rows: int = 2, heads: int = 2, keys: int = 20) -> View:
    """Heads that hold different tokens: padding in front of all but the first."""
    positions = torch.arange(keys).expand(rows, heads, keys).clone()
    positions[0, 1, :5] = -1
    return View(
        positions=positions,
        newest=torch.full((rows,), keys - 1),
        row=torch.arange(rows),
        keys=torch.randn(rows, heads, keys, 8, generator=random),
        values=torch.randn(rows, heads, keys, 8, generator=random),
        due=torch.ones(rows, dtype=torch.bool),
        layer=0,
    )


def held(seen: Entries, chosen: NammConfig, average: torch.Tensor | None = None) -> Held:
    state = {} if average is None else {"average": average}
    return Held(seen, state, torch.zeros(64, chosen.age_dim), chosen, None)


@pytest.mark.parametrize("over", ["head", "layer"])
def test_numbers_without_a_scale_are_standardised_over_what_is_held(over):
    """Against NumPy: means and deviations of a head's tokens, or of a row's, sinks and padding left out."""
    seen = view(torch.Generator().manual_seed(0))
    chosen = config(features=("key_norm",), standardised=over, sinks=3)
    found = Features(chosen).of(held(seen, chosen))[..., 0]
    norms = np.log(np.linalg.norm(seen.keys.double().numpy(), axis=-1))
    places = seen.positions.numpy()
    for row in range(2):
        for head in range(2):
            pool = norms[row, head][places[row, head] >= 3] if over == "head" else norms[row][places[row] >= 3]
            wanted = (norms[row, head] - pool.mean()) / pool.std()
            there = places[row, head] >= 0
            far = np.abs(wanted) > 5
            wanted[far] = np.sign(wanted[far]) * (5 + np.log1p(np.abs(wanted[far]) - 5))
            np.testing.assert_allclose(found[row, head].numpy()[there], wanted[there], atol=1e-4)


def test_a_features_numbers_do_not_depend_on_padding_or_batch_mates():
    random = torch.Generator().manual_seed(1)
    seen, average = view(random), torch.rand(2, 2, 17, 20, generator=random)
    for name in ALL:
        if name == "expected_attention":
            continue  # needs a model's queries: below
        chosen = config(features=(name,))
        together = Features(chosen).of(held(seen, chosen, average))
        assert torch.isfinite(together).all(), name
        alone = dataclasses.replace(
            seen,
            positions=seen.positions[:1, 1:, 5:],
            keys=seen.keys[:1, 1:, 5:],
            values=seen.values[:1, 1:, 5:],
            newest=seen.newest[:1],
            row=seen.row[:1],
            due=seen.due[:1],
        )
        apart = Features(chosen).of(held(alone, chosen, average[:1, 1:, :, 5:]))
        torch.testing.assert_close(together[:1, 1:, 5:], apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("over", ["head", "layer"])
@pytest.mark.parametrize("scorer", ["linear", "mlp", "bam"])
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_a_point_of_the_memorys_space(rule, scorer, over):
    """The kept sets of the policy, and of the memory at `rules.start`, over several updates of a real model."""
    model = tiny_llama()
    names = ("age", "key_norm", "expected_attention", "key_similarity")
    chosen = config(features=names, scorer=scorer, over=over, standardised=over, sinks=4)
    # No token twice: at the first layer their keys' norms would be equal but for rounding.
    ids = torch.randperm(model.config.vocab_size, generator=torch.Generator().manual_seed(2))[None, : 4 * INTERVAL + 7]
    policy = policies.named(rule)(budget=0.3, update_interval=INTERVAL, over=over, sinks=4, **RULES[rule])
    memory = Namm(chosen, rules.start(chosen, rule), budget=0.3)
    kept = []
    for one in (policy, memory):
        with MemoryCache(model, one) as cache, torch.no_grad():
            model(ids, past_key_values=cache, use_cache=True)
            kept.append([cache.kept_positions(layer)[0] for layer in range(len(cache.layers))])
    for ours, theirs in zip(*kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_rules_and_the_linear_part():
    chosen = config(features=("age", "key_norm", "key_similarity"), scorer="bam")
    assert rules.rules(chosen) == ["high_norm", "keydiff", "l2"]
    theta, part = rules.start(chosen, "keydiff"), rules.linear_part(chosen)
    assert theta.sum() == -1 and np.count_nonzero(theta) == 1 and part[np.flatnonzero(theta)].all()
    assert part.sum() == chosen.embedding + 1 == 11 and part[-1]
    with pytest.raises(ValueError, match="rule expected_attention needs the feature expected_attention: add it to"):
        rules.start(chosen, "expected_attention")
    with pytest.raises(ValueError, match="unknown rule 'kediff'; did you mean 'keydiff'"):
        rules.start(chosen, "kediff")
    with pytest.raises(ValueError, match="no rule is a point of this memory's space: no policy ranks by age, spectrum"):
        rules.start(NammConfig(), "kediff")


def test_budgets_are_asked_for_and_refused():
    model = tiny_llama()
    ids = torch.randint(0, model.config.vocab_size, (1, 2 * INTERVAL))
    memory = Namm(config(features=("key_norm",)))
    with MemoryCache(model, memory) as cache, pytest.raises(ValueError, match="keeps what a budget allows"):
        model(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="decides itself how much it keeps"):
        Namm(NammConfig(), budget=0.2)
    with pytest.raises(ValueError, match="theta has 2 rows, the budget 3"):
        Namm(config(), np.zeros((2, config().embedding + 1)), budget=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="features must name at least one, and none twice"):
        config(features=("age", "age"))
    with pytest.raises(ValueError, match="unknown feature 'agee'; did you mean 'age'"):
        config(features=("agee",))
    with pytest.raises(ValueError, match="pool must be odd"):
        config(pool=4)


def test_a_memory_with_a_budget_is_saved_and_read_again(tmp_path):
    chosen = config(features=("key_norm", "relative_age"), over="layer", sinks=2, recent=3, pool=3)
    theta = np.random.default_rng(0).normal(size=chosen.embedding + 1).astype(np.float32)
    Namm(chosen, theta).save_pretrained(tmp_path / "memory")
    read = Namm.from_pretrained(tmp_path / "memory", budget=24)
    assert read.config == chosen and np.array_equal(read.theta, theta)
    model = tiny_llama()
    ids = torch.randint(0, model.config.vocab_size, (1, 3 * INTERVAL))
    with MemoryCache(model, read) as cache, torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        for layer in range(len(cache.layers)):
            heads = cache.kept_positions(layer)[0]
            assert sum(map(len, heads)) == 24 * len(heads)
            assert all({0, 1, 3 * INTERVAL - 3, 3 * INTERVAL - 1} <= set(head.tolist()) for head in heads)


def test_a_saved_memory_with_a_budget_works_where_nothing_is_installed(tmp_path):
    """Through the code that travels with it, features and all; it answers as the cache does."""
    model = tiny_llama()
    ids = torch.randint(3, model.config.vocab_size, (1, 3 * INTERVAL + 5), generator=torch.Generator().manual_seed(5))
    theta = np.random.default_rng(1).normal(size=config().embedding + 1).astype(np.float32)
    Namm(config(over="layer", sinks=2), theta).save_pretrained(tmp_path / "memory")
    settings = {"max_new_tokens": 6, "do_sample": False}
    with MemoryCache(model, Namm.from_pretrained(tmp_path / "memory", budget=0.25)) as cache:
        right = model.generate(ids, past_key_values=cache, **settings)
    asked = {"custom_generate": str(tmp_path / "memory"), "trust_remote_code": True, **settings}
    assert torch.equal(model.generate(ids, budget=0.25, **asked), right)
    with pytest.raises(ValueError, match="this memory keeps what a budget allows: add budget=0.2"):
        model.generate(ids, **asked)


def test_the_papers_features_are_the_same_one_by_one_and_together():
    chosen = NammConfig(update_interval=INTERVAL)
    seen, average = view(torch.Generator().manual_seed(6)), torch.rand(2, 2, 17, 20)
    memory = Namm(chosen)
    together = memory.embeddings({"average": average}, seen)
    table = ages(64, chosen.age_dim, chosen.age_max_period)
    apart = Features(chosen).of(Held(seen, {"average": average}, table, chosen, None))
    assert torch.equal(together, apart)


def test_scores_are_averaged_over_neighbours_that_are_held():
    seen = view(torch.Generator().manual_seed(3))
    scores = torch.randn(2, 2, 20, generator=torch.Generator().manual_seed(4))
    found = pooled(scores, seen, 5)
    for row, head, first in ((0, 0, 0), (0, 1, 5), (1, 1, 0)):
        own = scores[row, head, first:].double().numpy()
        wanted = [own[max(i - 2, 0) : i + 3].mean() for i in range(len(own))]
        np.testing.assert_allclose(found[row, head, first:].numpy(), wanted, atol=1e-6)
