"""What transformers expects of a cache, for a memory that keeps everything and for those that forget."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers.cache_utils import Cache, DynamicCache

from namm_core import MemoryCache
from namm_core.policies import Full, Streaming
from tests.namm_core.matrix import CACHE, namm
from tests.tiny_models import tiny_llama

POLICIES = {
    "full": lambda: Full(16),
    "streaming": lambda: Streaming(16, 16),
    "padded": lambda: namm("padded"),
    "ragged": lambda: namm("ragged"),
}
IDS = torch.randint(1, 97, (3, 70), generator=torch.Generator().manual_seed(1))
MORE = torch.randint(1, 97, (1, 40), generator=torch.Generator().manual_seed(2))
NAMES = sorted({CACHE, "past_key_values"})


@pytest.fixture(params=POLICIES)
def read(request):
    model = tiny_llama()
    with MemoryCache(model, POLICIES[request.param]()) as cache, torch.no_grad():
        model(IDS, **{CACHE: cache})
        yield model, cache


def test_what_it_says_of_itself(read):
    """Fed columns count, however few are held: positions and masks follow the text."""
    _, cache = read
    assert isinstance(cache, Cache) and len(cache) == 2
    assert cache.get_seq_length() == cache.get_seq_length(1) == cache.seen == 70
    assert cache.get_max_length() == cache.get_max_length(1) == -1
    assert cache.get_mask_sizes(5, 0) == (5, 70)
    assert not cache.is_compileable and not cache.is_croppable and cache.is_initialized
    assert cache.is_sliding == [False, False]


def test_max_cache_len_is_that_of_the_stock_cache(read):
    model, cache = read
    assert getattr(cache, "max_cache_len", None) == getattr(DynamicCache(config=model.config), "max_cache_len", None)


@pytest.mark.parametrize("removed", [-1, 1, 5, 0])
def test_cropping_is_refused(read, removed):
    _, cache = read
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(removed)


@pytest.mark.parametrize("call", ["offload", "prefetch"])
def test_offloading_is_refused(read, call):
    _, cache = read
    for of in (lambda: getattr(cache, call)(0), lambda: getattr(cache, call)(0, only_non_sliding=False)):
        with pytest.raises(ValueError, match="stays on the model's device"):
            of()


MOVES = {
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
    "select one": (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    "select by a mask": (lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([1, 1, 0])), [1, 1, 0]),
    "leave": (lambda cache: cache.batch_select_indices(torch.arange(3)), [0, 1, 2]),
}


@pytest.mark.parametrize("move", MOVES)
def test_rows_move_with_all_that_belongs_to_them(read, move):
    """After a move each row goes on as the row that it came from, to the same tokens held."""
    model, cache = read
    act, rows = MOVES[move]
    act(cache)
    assert len(cache.fed) == len(rows) and cache.kept_counts().shape[1] == len(rows)
    logits = model(MORE.expand(len(rows), -1), **{CACHE: cache}).logits
    for row, source in enumerate(rows):
        with MemoryCache(model, cache.policy) as alone:
            model(IDS[source : source + 1], **{CACHE: alone})
            torch.testing.assert_close(logits[row], model(MORE, **{CACHE: alone}).logits[0], atol=1e-4, rtol=0)
        for layer in range(2):
            for held, wanted in zip(cache.kept_positions(layer)[row], alone.kept_positions(layer)[0], strict=True):
                assert torch.equal(held, wanted)


def test_reset_makes_it_fresh(read):
    model, cache = read
    cache.reset()
    assert cache.seen == 0 and cache.fed == [] and not cache.is_initialized
    got = model(IDS[:2], **{CACHE: cache}).logits  # another number of rows, too
    with MemoryCache(model, cache.policy) as fresh:
        assert torch.equal(got, model(IDS[:2], **{CACHE: fresh}).logits)
    assert cache.fed == fresh.fed and torch.equal(cache.kept_counts(), fresh.kept_counts())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_return_sequences": 2, "do_sample": True},
        {"num_beams": 2},
        {"prefill_chunk_size": 16},
        {"return_dict_in_generate": True},
    ],
    ids=str,
)
def test_both_names_of_the_argument_do_the_same(options, name):
    """All ways to generate; keeping everything gives what the stock cache gives."""
    model = tiny_llama()
    settings = {"max_new_tokens": 6, "do_sample": False} | options

    def answer(**given) -> torch.Tensor:
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the old name
            found = model.generate(IDS[:2], **settings, **given)
        return found if isinstance(found, torch.Tensor) else found.sequences

    wanted = answer(**{CACHE: DynamicCache(config=model.config)})
    with MemoryCache(model, Full(16)) as cache:
        assert torch.equal(answer(**{name: cache}), wanted)
    with MemoryCache(model, namm("ragged")) as cache:
        ours = answer(**{name: cache})
    with MemoryCache(model, namm("ragged")) as cache:
        assert torch.equal(ours, answer(**{CACHE: cache})) and cache.seen == 75
        assert int(cache.kept_counts().max()) < 75


@pytest.fixture(params=POLICIES)
def model_and_policy(request):
    return tiny_llama(), POLICIES[request.param]()


def test_embeddings_are_answered_as_their_tokens(model_and_policy):
    model, policy = model_and_policy
    settings = {"max_new_tokens": 6, "do_sample": False}
    with MemoryCache(model, policy) as cache:
        wanted = model.generate(IDS, **settings, **{CACHE: cache})[:, IDS.shape[1] :]
    with MemoryCache(model, policy) as cache:
        embedded = model.get_input_embeddings()(IDS)
        assert torch.equal(model.generate(inputs_embeds=embedded, **settings, **{CACHE: cache}), wanted)
        assert cache.seen == IDS.shape[1] + 5


def test_generation_goes_on_where_a_text_was_left(model_and_policy):
    """In one go, or with a first part that was read by a call or by `generate`: the same answer, the same held."""
    model, policy = model_and_policy
    settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    text = torch.cat([IDS, MORE.expand(3, -1)], dim=1)
    found = []
    for first in ("nothing", "call", "generate"):
        with MemoryCache(model, policy) as cache, torch.no_grad():
            if first == "call":
                model(IDS, **{CACHE: cache})
            elif first == "generate":
                model.generate(IDS, **{**settings, "max_new_tokens": 1}, **{CACHE: cache})
                assert cache.seen == IDS.shape[1]  # the token that was written is not fed
            out = model.generate(text, **settings, **{CACHE: cache})
            held = [[head.tolist() for row in cache.kept_positions(layer) for head in row] for layer in range(2)]
            assert out[CACHE] is cache
            found.append((out.sequences.tolist(), held))
    assert found[0] == found[1] == found[2]
