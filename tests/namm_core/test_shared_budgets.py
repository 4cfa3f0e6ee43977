"""Who shares a budget, and what always stays: `over`, `sinks`, `recent`, `whole_layers`, against plain NumPy."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from namm_core import MemoryCache, policies
from namm_core.protocols import View

HEADS, SIZE, COLUMNS, LAYERS, INTERVAL = 3, 8, 40, 4, 32
OPTIONS = [
    {},
    {"sinks": 4},
    {"recent": 5},
    {"recent": 0.25},
    {"sinks": 3, "recent": 0.5},
    {"sinks": 50, "recent": 50},
]
SCORED = ["l2", "high_norm", "keydiff", "h2o", "tova", "random"]


def some_view(rows: int, seed: int = 0) -> tuple[View, dict[str, torch.Tensor]]:
    """Rows and heads of unequal length, padded in front; a third of the keys come twice, so that scores tie."""
    draw = np.random.default_rng(seed)
    positions = np.full((rows, HEADS, COLUMNS), -1)
    newest = draw.integers(50, 60, rows)
    for row in range(rows):
        for head in range(HEADS):
            held = draw.choice(newest[row], draw.integers(20, COLUMNS), replace=False)
            positions[row, head, COLUMNS - len(held) - 1 :] = [*np.sort(held), newest[row]]
    keys = draw.normal(size=(rows, HEADS, COLUMNS, SIZE))
    keys[:, :, ::3] = keys[:, :1, 1::3][:, :, : keys[:, :, ::3].shape[2]][:, :, :1]  # the same key in every head
    view = View(
        positions=torch.from_numpy(positions),
        newest=torch.from_numpy(newest),
        row=torch.arange(rows),
        keys=torch.from_numpy(keys).float(),
        values=torch.from_numpy(draw.normal(size=keys.shape)).float(),
        due=torch.ones(rows, dtype=torch.bool),
        layer=1,
        layers=LAYERS,
    )
    attention = torch.from_numpy(draw.integers(0, 6, (rows, HEADS, 1, COLUMNS))).float()  # ties again
    return view, {"received": attention, "last": attention}


def scored(name: str, view: View, state: dict[str, torch.Tensor], row: int, head: int) -> np.ndarray:
    """(columns,) scores by each method's own formula."""
    held = view.positions[row, head].numpy() >= 0
    keys, attention = view.keys[row, head].double().numpy(), state["last"][row, :, 0].double().numpy()
    norms = np.linalg.norm(keys, axis=1)
    if name == "keydiff":
        directions = keys / norms[:, None]
        mean = directions[held].mean(0)
        return np.round(-directions @ mean / np.linalg.norm(mean), 5)
    if name == "random":
        return policies.named(name)(budget=1).scores(state, view)[row, head].numpy()
    return {"l2": -norms, "high_norm": norms, "h2o": attention[head], "tova": attention.mean(0)}[name]


def read_by_hand(scores: np.ndarray, view: View, row: int, tokens: int, over: str, sinks: int, recent) -> set:
    """The (head, position) pairs of a row that stay; scores: (heads, columns)."""
    first = min(sinks, tokens - 1)
    last = min(int(np.floor(tokens * recent)) if isinstance(recent, float) else recent, tokens - first)
    newest = int(view.newest[row])
    pairs = []
    for head in range(HEADS):
        for column, position in enumerate(view.positions[row, head].tolist()):
            if position >= 0:
                forced = position < first or position > newest - last or position == newest
                pairs.append((not forced, 0.0 if forced else -scores[head, column], position, head))
    if over == "layer":
        return {(head, position) for *_, position, head in sorted(pairs)[: tokens * HEADS]}
    kept = set()
    for h in range(HEADS):
        kept |= {(h, position) for *_, position, head in sorted(p for p in pairs if p[3] == h)[:tokens]}
    return kept


@pytest.mark.parametrize("over", ["head", "layer"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", SCORED)
def test_what_stays_is_what_ranking_all_pairs_by_hand_gives(name, options, over):
    """With tensor budgets of each row's own, ties, padding and heads of unequal length."""
    view, state = some_view(4)
    budgets = [2, 7, 15, 60]  # below the sinks, between, and more than there is
    policy = policies.named(name)(torch.tensor(budgets), INTERVAL, over=over, **options)
    kept = policy.keep(state, view)
    given = {"sinks": 0, "recent": 0.5 if name == "h2o" else 0, **options}
    for row, tokens in enumerate(budgets):
        scores = np.stack([scored(name, view, state, row, head) for head in range(HEADS)])
        if name == "keydiff":  # ties to float32's precision: the policy's own scores, once they are known to be right
            own = policy.scores(state, view)[row].double().numpy()
            held = view.positions[row].numpy() >= 0
            assert np.allclose(own[held], scores[held], atol=2e-5)
            scores = own
        elif name in ("l2", "high_norm"):
            scores = scores.astype(np.float32)
        found = {(h, int(view.positions[row, h, c])) for h, c in kept[row].nonzero().tolist()}
        assert found == read_by_hand(scores, view, row, tokens, over, **given)


def test_heads_that_share_keep_unequal_numbers_and_as_many_together():
    view, state = some_view(3)
    alone = policies.named("l2")(10, INTERVAL).keep(state, view).sum(-1)
    together = policies.named("l2")(10, INTERVAL, over="layer").keep(state, view).sum(-1)
    assert (alone == 10).all() and (together.sum(-1) == 30).all() and (together != 10).any()


@pytest.mark.parametrize("options", [{"sinks": 4}, {"sinks": 4, "over": "layer"}, {"sinks": 50}, {"recent": 0.5}])
@pytest.mark.parametrize("window", [2, 32, 64])
def test_the_newest_stays_beside_sinks_and_a_voting_window(options, window):
    """SnapKV's window is what the budget has room for; sinks come out of it, and not the newest token."""
    view, _ = some_view(4)
    state = {"votes": torch.rand(4, HEADS, 1, COLUMNS, generator=torch.Generator().manual_seed(1))}
    for tokens in (1, 3, 10, 20):
        policy = policies.named("snapkv")(tokens, INTERVAL, window=window, **options)
        kept = policy.keep(state, view)
        assert (kept & (view.positions == view.newest[:, None, None])).any(-1).all()
        assert (kept.sum((1, 2)) <= tokens * HEADS).all()
        first = min(options.get("sinks", 0), tokens - 1)
        assert not ((view.positions >= 0) & (view.positions < first) & ~kept).any()


@functools.cache
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 48, "num_attention_heads": 6, "num_key_value_heads": HEADS}
    config = LlamaConfig(vocab_size=200, num_hidden_layers=LAYERS, initializer_range=0.3, pad_token_id=0, **sizes)
    return LlamaForCausalLM(config).eval()


def some_text(tokens: int) -> torch.Tensor:
    """No token twice: rotation keeps a key's length, so that the order of equal tokens would be left to rounding."""
    return 1 + torch.randperm(199, generator=torch.Generator().manual_seed(1))[None, :tokens]


def read(policy, ids: torch.Tensor, **more) -> MemoryCache:
    with MemoryCache(model(), policy) as cache, torch.no_grad():
        model()(ids, past_key_values=cache, **more)
    return cache


WHOLE = [n for n in policies.names() if policies.named(n).takes_budget]


@pytest.mark.parametrize("whole", [1, 2])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_layers_forget_nothing_and_the_others_make_up_for_it(name, whole):
    """In tokens and as a fraction: the total is the budget's, but for rounding a layer's share down."""
    text = some_text(4 * INTERVAL)
    for budget, a_head in ((77, 77), (0.6, 77)):
        counts = read(policies.named(name)(budget, INTERVAL, whole_layers=whole), text).kept_counts()[:, 0]
        assert (counts[:whole] == len(text[0])).all()
        assert (counts[whole:] == (LAYERS * a_head - whole * len(text[0])) // (LAYERS - whole)).all()
        assert 0 <= LAYERS * a_head - int(counts[:, 0].sum()) < LAYERS - whole


def test_whole_layers_share_what_is_left_over_a_layers_heads_too():
    text = some_text(4 * INTERVAL)
    counts = read(policies.named("l2")(77, INTERVAL, whole_layers=1, over="layer"), text).kept_counts()[:, 0]
    assert (counts[0] == 128).all() and (counts[1:].sum(-1) == HEADS * 60).all() and (counts[1:] != 60).any()


@pytest.mark.parametrize(
    "options",
    [{"over": "layer"}, {"over": "layer", "sinks": 4, "recent": 0.25}, {"whole_layers": 1}, {"whole_layers": 4}],
    ids=str,
)
@pytest.mark.parametrize("name", [n for n in WHOLE if n != "streaming"])
def test_a_row_does_not_depend_on_its_batch_mates(name, options):
    """Left-padded rows of unequal length with budgets of their own, in tokens and fractions, and each alone."""
    lengths, text = (110, 70, 41), some_text(110)
    batch = torch.zeros(3, 110, dtype=torch.int64)
    for row, length in enumerate(lengths):
        batch[row, 110 - length :] = text[0, :length]
    for budgets in ([40, 45, 30], [0.5, 0.4, 0.7]):
        policy = policies.named(name)(torch.tensor(budgets), INTERVAL, **options)
        together = read(policy, batch, attention_mask=(batch > 0).long())
        for row, length in enumerate(lengths):
            alone = read(policies.named(name)(budgets[row], INTERVAL, **options), text[:, :length])
            for layer in range(LAYERS):
                both = zip(together.kept_positions(layer)[row], alone.kept_positions(layer)[0], strict=True)
                assert all(torch.equal(a, b) for a, b in both)
