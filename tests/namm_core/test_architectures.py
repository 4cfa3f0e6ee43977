"""The matrix: every architecture, every way to generate, against the stock cache and a reader without a cache.

A row is an architecture (or a way to generate); its name and its docstring say what it checks.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers

from namm_core import MemoryCache
from namm_core.policies import H2O, Full, Streaming
from tests.namm_core.architectures import (
    CONFIGS,
    SLIDING,
    WINDOW,
    ByReceived,
    ByRecency,
    Reader,
    small_model,
    text,
)
from tests.namm_core.matrix import CACHE, INTERVAL, NEW, PROMPT, by_namm, generate, namm, positions

POLICIES = {  # name: (the policy, what decides for the reader)
    "namm": (partial(namm, "ragged"), partial(by_namm, "ragged")),
    "namm-padded": (partial(namm, "padded"), partial(by_namm, "padded")),
    "streaming": (lambda: Streaming(12, INTERVAL), lambda: ByRecency(12)),
    "h2o": (lambda: H2O(12, INTERVAL), lambda: ByReceived(12)),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return small_model(request.param)


@pytest.fixture(scope="module")
def llama():
    return small_model("llama")


@pytest.fixture
def prompt() -> torch.Tensor:
    return text(PROMPT, seed=1)[None]


def choose_greedily(reader: Reader, logits: torch.Tensor, steps: int) -> tuple[list[int], torch.Tensor]:
    """Tokens and (steps, vocabulary) logits of a loop by hand that stands at `logits`."""
    tokens, seen = [], []
    for step in range(steps):
        best, second = logits.topk(2).values
        assert best - second > 1e-3, "choose another prompt: float32 may decide this token either way"
        seen.append(logits)
        tokens.append(int(logits.argmax()))
        if step + 1 < steps:  # as in `generate`, the last token is never fed
            logits = reader.read(tokens[-1])
    return tokens, torch.stack(seen)


# --- every architecture


def test_keeping_everything_is_the_stock_cache(model, prompt):
    """Logits of the prompt within 1e-4, the same greedy tokens."""
    with torch.no_grad():
        stock = model(prompt).logits
        with MemoryCache(model, Full(INTERVAL)) as cache:
            ours = model(prompt, **{CACHE: cache}).logits
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    tokens, _ = generate(model, prompt, Full(INTERVAL))
    assert torch.equal(tokens, model.generate(prompt, max_new_tokens=NEW, do_sample=False))


@pytest.mark.parametrize("policy", POLICIES)
def test_forgetting_is_what_a_reader_without_a_cache_computes(model, prompt, policy):
    """Kept positions and greedy tokens identical, logits within 1e-4, one token at a time and in `generate`."""
    make, decider = POLICIES[policy]
    got, cache = generate(model, prompt, make(), output_logits=True, return_dict_in_generate=True)
    with Reader(model, INTERVAL, decider) as reader:
        tokens, logits = choose_greedily(reader, reader.read_all(prompt[0])[-1], NEW)
    assert reader.margin > 2e-4, "choose another prompt: float32 may decide an eviction either way"
    assert got.sequences[0, PROMPT:].tolist() == tokens
    torch.testing.assert_close(torch.stack(got.logits)[:, 0], logits, atol=1e-4, rtol=0)
    assert positions(cache) == reader.kept
    held = [len(head) for layer in reader.kept for head in layer]
    assert max(held) < 0.6 * len(reader.tokens), "the memory should forget"


@pytest.mark.parametrize("policy", POLICIES)
def test_unequal_prompts_padded_on_the_left_equal_each_alone(model, prompt, policy):
    """Greedy tokens and kept positions of three rows whose updates fall due at different steps."""
    make, _ = POLICIES[policy]
    lengths = (PROMPT, 61, 13)
    batch = torch.zeros(3, PROMPT, dtype=torch.int64)
    for row, length in enumerate(lengths):
        batch[row, PROMPT - length :] = prompt[0, :length]
    together, cache = generate(model, batch, make(), attention_mask=(batch > 0).long())
    for row, length in enumerate(lengths):
        alone, of_one = generate(model, prompt[:, :length], make())
        assert together[row, PROMPT:].tolist() == alone[0, length:].tolist()
        assert positions(cache, row) == positions(of_one)


@pytest.mark.parametrize("size", [7, 40])
def test_prefill_in_chunks_changes_nothing(model, prompt, size):
    """`prefill_chunk_size` smaller and larger than the update interval."""
    whole, one = generate(model, prompt, namm("ragged"))
    pieces, many = generate(model, prompt, namm("ragged"), prefill_chunk_size=size)
    assert torch.equal(whole, pieces) and positions(one) == positions(many)


def test_a_conversation_goes_on_with_the_same_cache(model, prompt):
    """Turn 2 gets all ids, as `generate` wants them, and is what a reader of the whole conversation computes."""
    with MemoryCache(model, namm("ragged")) as cache:
        first = model.generate(prompt, max_new_tokens=5, do_sample=False, **{CACHE: cache})
        second = torch.cat([first, text(20, seed=2)[None]], dim=1)
        got = model.generate(second, max_new_tokens=NEW, do_sample=False, **{CACHE: cache})
    with Reader(model, INTERVAL, partial(by_namm, "ragged")) as reader:
        tokens, _ = choose_greedily(reader, reader.read_all(second[0])[-1], NEW)
    assert got[0, second.shape[1] :].tolist() == tokens and positions(cache) == reader.kept


@pytest.mark.parametrize("architecture", SLIDING)
def test_what_slid_out_of_the_window_is_forgotten(architecture, prompt):
    """Keeping everything, a sliding layer holds its window after an update, and the tail since then."""
    model = small_model(architecture)
    with MemoryCache(model, Full(INTERVAL)) as cache, torch.no_grad():
        model(prompt, **{CACHE: cache})
    end = PROMPT - PROMPT % INTERVAL
    for layer, heads in enumerate(positions(cache)):
        start = end - WINDOW if layer in SLIDING[architecture] else 0
        assert heads == [list(range(start, PROMPT))] * 2


def test_a_model_with_a_memory_serves_other_caches_too(model, prompt):
    """Without a cache, and with the stock one and padding, a model that carries the memory's attention is itself."""
    ids = prompt.repeat(2, 1)
    ids[1, :20] = 0
    options = {"attention_mask": (ids > 0).long(), "max_new_tokens": NEW, "do_sample": False}
    stock = model.generate(ids, **options)
    with torch.no_grad():
        logits = model(prompt, use_cache=False).logits
        with MemoryCache(model, Full()):
            torch.testing.assert_close(model(prompt, use_cache=False).logits, logits, atol=1e-4, rtol=0)
            assert torch.equal(model.generate(ids, **options), stock)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_setting_comes_back(model, implementation):
    """After a `with` block, after `detach`, and with two caches taken off in turn."""
    if implementation == "sdpa" and not model._supports_sdpa:
        pytest.skip(f"{type(model).__name__} has no sdpa")
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    with MemoryCache(model, Full()):
        assert model.config._attn_implementation == "namm"
    assert model.config._attn_implementation == implementation
    first, second = MemoryCache(model, Full()), MemoryCache(model, Full())
    second.detach()
    first.detach()
    assert model.config._attn_implementation == implementation
    model.set_attn_implementation(before)


# --- ways to generate


def test_sampling_keeping_everything_is_the_stock_cache(llama, prompt):
    """The same seed draws the same tokens."""
    torch.manual_seed(4)
    stock = llama.generate(prompt, max_new_tokens=NEW, do_sample=True)
    torch.manual_seed(4)
    ours, _ = generate(llama, prompt, Full(INTERVAL), do_sample=True)
    assert torch.equal(ours, stock)


def test_sampling_while_forgetting_is_a_loop_by_hand(llama, prompt):
    """The same seed draws the same tokens from the reader's logits."""
    torch.manual_seed(4)
    got, cache = generate(llama, prompt, namm("ragged"), do_sample=True, top_k=0)
    torch.manual_seed(4)
    with Reader(llama, INTERVAL, partial(by_namm, "ragged")) as reader:
        logits, tokens = reader.read_all(prompt[0])[-1], []
        for step in range(NEW):
            tokens.append(int(torch.multinomial(logits.softmax(-1), 1)))
            logits = reader.read(tokens[-1]) if step + 1 < NEW else logits
    assert got[0, PROMPT:].tolist() == tokens and positions(cache) == reader.kept


def test_beams_keeping_everything_are_the_stock_cache(model, prompt):
    """Beam search of two rows with three beams."""
    ids = torch.cat([prompt, text(PROMPT, seed=3)[None]])
    options = {"num_beams": 3, "max_new_tokens": NEW, "do_sample": False}
    ours, _ = generate(model, ids, Full(INTERVAL), **options)
    assert torch.equal(ours, model.generate(ids, **options))


def test_beams_while_forgetting_have_the_scores_of_a_reader(llama, prompt):
    """Each beam's log-probability is the reader's along its tokens: its memory moved with it, whole."""
    options = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    got, _ = generate(llama, prompt, namm("ragged"), **options)
    for beam, score in zip(got.sequences, got.sequences_scores, strict=True):
        with Reader(llama, INTERVAL, partial(by_namm, "ragged")) as reader:
            logits = reader.read_all(beam[:-1])[PROMPT - 1 :]
        along = logits.log_softmax(-1).gather(-1, beam[PROMPT:, None]).sum()
        assert float(score) == pytest.approx(float(along), abs=1e-3)


def test_two_caches_take_turns_on_one_model(llama, prompt):
    """Pieces of two conversations, fed alternately, end as each alone."""
    makers = (partial(namm, "ragged"), lambda: H2O(12, INTERVAL))
    caches = [MemoryCache(llama, make()) for make in makers]
    with torch.no_grad():
        for piece in prompt[:, :-1].split(23, dim=1):
            for cache in caches:
                llama(piece, **{CACHE: cache})
    for cache, make in zip(caches, makers, strict=True):
        got = llama.generate(prompt, max_new_tokens=NEW, do_sample=False, **{CACHE: cache})
        alone, of_one = generate(llama, prompt, make())
        assert torch.equal(got, alone) and positions(cache) == positions(of_one)
    for cache in reversed(caches):
        cache.detach()


def test_lengths_are_bounded_as_ever(llama, prompt):
    """`max_length` counts all tokens, `max_new_tokens` the new ones, however few are still held."""
    got, cache = generate(llama, prompt, Streaming(12, INTERVAL), max_new_tokens=None, max_length=PROMPT + 5)
    assert got.shape[1] == PROMPT + 5 and cache.seen == PROMPT + 4  # the last token is not fed
    got, cache = generate(llama, prompt, Streaming(12, INTERVAL), max_new_tokens=1)
    assert got.shape[1] == PROMPT + 1 and cache.seen == PROMPT


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_both_names_of_the_argument(llama, prompt, name):
    """`cache` since transformers 5.24; `past_key_values` before, and until 6."""
    if name == "cache" and CACHE != "cache":
        pytest.skip(f"transformers {transformers.__version__} does not know `cache` yet")
    with MemoryCache(llama, Streaming(12, INTERVAL)) as cache:
        got = llama.generate(prompt, max_new_tokens=NEW, do_sample=False, **{name: cache})
    assert torch.equal(got, generate(llama, prompt, Streaming(12, INTERVAL))[0])


# --- models with other parts


def test_only_the_text_part_forgets(prompt):
    """With an image, keeping everything is the stock cache; each part's own attention setting comes back."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=8, patch_size=4, initializer_range=0.3),
        text_config=CONFIGS["llama"],
        image_token_index=96,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation({"": "sdpa", "text_config": "sdpa", "vision_config": "eager"})
    ids = prompt.clamp(max=95)
    ids[0, 3:7] = 96
    image = {"pixel_values": torch.randn(1, 3, 8, 8)}
    with torch.no_grad():
        stock = model(ids, **image).logits
        with MemoryCache(model, Full(INTERVAL)) as cache:
            ours = model(ids, **image, **{CACHE: cache}).logits
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    parts = (model.config, model.config.text_config, model.config.vision_config)
    assert [part._attn_implementation for part in parts] == ["sdpa", "sdpa", "eager"]
