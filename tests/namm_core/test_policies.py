"""One matrix of all policies: a new file in `namm_core/policies` inherits every test."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_core import MemoryCache, Namm, NammConfig, policies
from namm_core.policies import H2O, L2, ExpectedAttention, Full, Oracle, Random, SnapKV
from namm_core.protocols import Policy
from tests.namm_core import reference_policies as reference

INTERVAL, TOKENS = 32, 150


def scattered_namm(scorer: str, interval: int = INTERVAL) -> Namm:
    config = NammConfig(update_interval=interval, scorer=scorer)
    size = Namm(config).num_parameters
    return Namm(config, torch.randn(size, generator=torch.Generator().manual_seed(3)) * 0.1)


BUDGETED = [name for name in policies.names() if policies.named(name).takes_budget]
POLICIES = {
    "namm": partial(scattered_namm, "bam"),
    "namm-mlp": partial(scattered_namm, "mlp"),
    "oracle": lambda interval=INTERVAL: Oracle([torch.tensor([5, 17, 60])], interval),
    **{name: lambda interval=INTERVAL, name=name: policies.named(name)(20, interval) for name in BUDGETED},
    "snapkv-avg": lambda interval=INTERVAL: SnapKV(20, interval, window=8, pooling="avg"),
    "expected_attention-0.3": lambda interval=INTERVAL: ExpectedAttention(0.3, interval),
}
for name in policies.names():  # those of neither kind need no more than an interval
    POLICIES.setdefault(name, lambda interval=INTERVAL, name=name: policies.named(name)(update_interval=interval))


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


@pytest.mark.parametrize(
    "budget, message",
    [
        (0, "at least 1, not 0"),
        (-3, "at least 1, not -3"),
        (True, "not True"),
        ("20", "not '20'"),
        (0.0, "above 0 and at most at 1, not 0.0"),
        (20.0, "not 20.0 .tokens are an int"),
        (float("nan"), "not nan"),
        (torch.tensor([5, 0]), "at least 1, not 0"),
        (torch.tensor([0.5, 1.5]), "not 1.5"),
        (torch.tensor([True]), "not torch.bool"),
        (torch.tensor(5), "shape .rows,., not"),
    ],
)
@pytest.mark.parametrize("name", BUDGETED)
def test_what_is_no_budget_is_refused(name, budget, message):
    with pytest.raises(ValueError, match=message):
        policies.named(name)(budget)


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("h2o", {"recent": 1.5}),
        ("streaming", {"sinks": -1}),
        ("snapkv", {"window": 0}),
        ("snapkv", {"kernel": 4}),
        ("snapkv", {"pooling": "sum"}),
        ("expected_attention", {"future": 0}),
        ("expected_attention", {"epsilon": -0.1}),
        ("l2", {"update_interval": 0}),
    ],
)
def test_numbers_out_of_range_are_refused(name, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        policies.named(name)(20, **wrong)


def test_every_member_of_the_interface_is_there():
    """Declared for every policy: nobody asks with `hasattr`."""
    members = {*Policy.__annotations__, *(name for name in vars(Policy) if not name.startswith("_"))}
    assert {"takes_budget", "advances", "needs_queries", "rows", "watch", "keep", "summarise"} <= members
    for name, make in POLICIES.items():
        policy = make()
        assert all(hasattr(policy, member) for member in members), name
    assert {"full", "oracle"} <= {name for name in policies.names() if not policies.named(name).takes_budget}
    assert not Namm.takes_budget


@pytest.mark.parametrize("name", policies.names())
def test_what_a_policy_says_of_itself_is_what_its_constructor_does(name):
    policy = policies.named(name)
    given = {} if name != "oracle" else {"relevant": [torch.tensor([5])]}
    if policy.takes_budget:
        assert policy(budget=20, update_interval=INTERVAL, **given).budget == 20
        with pytest.raises(TypeError):
            policy(update_interval=INTERVAL, **given)
    else:
        with pytest.raises(TypeError):
            policy(budget=20, update_interval=INTERVAL, **given)
        with pytest.raises(ValueError, match=f"policy {name} takes no budget"):
            policies.check(name, {}, budget=0.2)
    for key, option in policies.options(name).items():
        assert key not in ("budget", "update_interval", "relevant")
        assert policies.check(name, {key: option.default}) == {key: option.default}


def test_options_are_found_in_a_policys_own_fields():
    assert {name: option.default for name, option in policies.options("snapkv").items()} == {
        "window": 32,
        "kernel": 7,
        "pooling": "max",
    }
    assert policies.options("snapkv")["window"].type is int
    assert list(policies.options("oracle")) == ["sinks"] and not policies.options("l2")
    values = policies.check("expected_attention", {"sinks": 2, "epsilon": "1e-3"}, budget=0.2)  # as YAML reads 1e-3
    assert values == {"sinks": 2, "epsilon": 0.001} and policies.named("expected_attention")(0.2, INTERVAL, **values)


@pytest.mark.parametrize(
    "name, given, budget, message",
    [
        (
            "snapkv",
            {"windw": 64},
            None,
            "^policy snapkv: unknown option 'windw'; did you mean 'window'. Known: window, k",
        ),
        ("snapkv", {"budget": 64}, None, "^policy snapkv: unknown option 'budget'"),  # which has a key of its own
        ("l2", {"window": 64}, None, "^policy l2 has no options: unknown option 'window'$"),
        ("snapkv", {"window": "wide"}, None, "^policy snapkv: window: expected int, found 'wide'$"),
        ("snapkv", {"window": 0}, None, "^policy snapkv: window is an integer of at least 1, not 0$"),
        ("snapkv", {"pooling": "sum"}, None, "^policy snapkv: pooling: 'sum' is not known; did you mean"),
        ("oracle", {"sinks": "many"}, None, "^policy oracle: sinks: expected int"),
        ("streaming", {}, 1.5, "^policy streaming: a budget as a fraction"),
        ("full", {}, 0.5, "^policy full takes no budget"),
        ("snapvk", {}, None, "unknown policy 'snapvk'; did you mean 'snapkv'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(name, given, budget, message):
    with pytest.raises(ValueError, match=message) as error:
        policies.check(name, given, budget)
    assert "\n" not in str(error.value)


def test_a_policy_from_a_folder_outside_has_its_options_too(tmp_path):
    (tmp_path / "every_other.py").write_text(
        "from dataclasses import dataclass\n"
        "from namm_core import BasePolicy\n"
        "@dataclass\n"
        "class EveryOther(BasePolicy):\n"
        "    update_interval: int = 512\n"
        "    step: int = 2\n"
        "    def keep(self, state, view):\n"
        "        return view.positions % self.step == 1\n"
    )
    (tmp_path / "use.py").write_text(
        "from pathlib import Path\n"
        "from namm_core import plugins, policies\n"
        "plugins.extend('namm_core.policies', Path(__file__).parent)\n"
        "assert policies.check('every_other', {'step': 3}) == {'step': 3}\n"
        "assert policies.named('every_other')(step=3).step == 3\n"
        "from namm_core.policies import EveryOther\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(policies.__file__).parents[2])}
    subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env=environment, check=True)


def test_policies_are_found_by_their_files():
    assert {"full", "h2o", "tova", "snapkv", "keydiff", "expected_attention", "random"} <= set(policies.names())
    assert policies.named("expected_attention") is ExpectedAttention and policies.named("h2o") is H2O
    with pytest.raises(ValueError, match="unknown policy 'snapvk'; did you mean 'snapkv'. Known: expected_attention"):
        policies.named("snapvk")
    with pytest.raises(ValueError, match="unknown policy 'base'"):
        policies.named("base")
    with pytest.raises(ImportError, match="cannot import name 'h2O'"):
        from namm_core.policies import h2O  # noqa: F401


def test_a_policy_is_added_by_writing_its_file(tmp_path):
    """In a copy of the package, where nothing else is touched; names are listed without torch."""
    shutil.copytree(Path(policies.__file__).parents[1], tmp_path / "namm_core")
    (tmp_path / "namm_core" / "policies" / "odd_ones.py").write_text(
        "from namm_core.policy import BasePolicy\n"
        "class OddOnes(BasePolicy):\n"
        "    def keep(self, state, view):\n"
        "        return view.positions % 2 == 1\n"
    )
    (tmp_path / "use.py").write_text(
        "import sys\n"
        "from namm_core import policies\n"
        "assert 'odd_ones' in policies.names() and 'torch' not in sys.modules\n"
        "from namm_core.policies import OddOnes\n"
        "assert policies.named('odd_ones') is OddOnes\n"
    )
    subprocess.run([sys.executable, "use.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, check=True)


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


def test_h2o_counts_all_attention_that_a_key_received(model, prompt):
    """Against the full attention matrix of the stock eager model, before anything was forgotten."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(prompt[:, :INTERVAL], output_attentions=True).attentions[1][0]
    received = weights.view(2, 2, INTERVAL, INTERVAL).mean(1).sum(1)  # mean over the query group
    model.set_attn_implementation("sdpa")
    with MemoryCache(model, H2O(20, INTERVAL)) as cache, torch.no_grad():
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
