"""The matrix: every architecture, every way to generate, against the stock cache and a reader without a cache.

A row is an architecture (or a way to generate); its name and its docstring say what it checks.
"""

from __future__ import annotations

import inspect
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from transformers import LlamaForCausalLM

from namm_core import FeatureStatistics, MemoryCache, Namm, NammConfig
from namm_core.policies import H2O, Full, Streaming
from tests.namm_core.architectures import (
    CONFIGS,
    SLIDING,
    WINDOW,
    ByNamm,
    ByReceived,
    ByRecency,
    Reader,
    small_model,
    text,
)
from tests.namm_core.reference import NUM_PARAMETERS, Reference, Statistics

INTERVAL, PROMPT, NEW = 16, 90, 8  # an update falls due in decode, at 96, and a tail is left over
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"

THETA = np.random.default_rng(58).normal(0, 0.3, NUM_PARAMETERS).astype(np.float32)
_MEAN, _VAR = np.full(17, 0.06), np.full(17, 0.01)


def namm(selection: str) -> Namm:
    config = NammConfig(update_interval=INTERVAL, n_fft=32, hop=16, selection=selection)
    return Namm(config, THETA, FeatureStatistics(_MEAN, _VAR, 99))


def by_namm(selection: str) -> ByNamm:
    return ByNamm(Reference(THETA, selection, Statistics(_MEAN, _VAR, 99)))


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


def generate(model, ids, policy, **options):
    """(what `generate` returns, the cache)"""
    with MemoryCache(model, policy) as cache:
        options = {"max_new_tokens": NEW, "do_sample": False, CACHE: cache, **options}
        return model.generate(ids, **options), cache


def positions(cache, row=0):
    return [[head.tolist() for head in cache.kept_positions(layer)[row]] for layer in range(len(cache.layers))]


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


# --- what is refused


def test_right_padded_prompts_are_refused_in_generate(model, prompt):
    """Also in chunks and with one new token; padding in front of a whole chunk is no right padding."""
    ids = prompt.repeat(2, 1)
    ids[1, 60:] = 0
    for options in ({}, {"prefill_chunk_size": 30}, {"max_new_tokens": 1}):
        with pytest.raises(ValueError, match="padded on the right.*padding_side = 'left'"):
            generate(model, ids, Full(INTERVAL), attention_mask=(ids > 0).long(), **options)
    left = ids.flip(1)
    whole, _ = generate(model, left, namm("ragged"), attention_mask=(left > 0).long())
    pieces, _ = generate(model, left, namm("ragged"), attention_mask=(left > 0).long(), prefill_chunk_size=10)
    assert torch.equal(whole, pieces)


def test_tokens_once_fed_cannot_become_padding(llama, prompt):
    """A row that ended early was fed padding as tokens; a later mask that hides it comes too late."""
    ids = prompt.repeat(2, 1)
    with MemoryCache(llama, Full(INTERVAL)) as cache, torch.no_grad():
        llama(ids, **{CACHE: cache})
        mask = torch.ones(2, PROMPT + 1, dtype=torch.long)
        mask[1, PROMPT - 3 : PROMPT] = 0
        with pytest.raises(ValueError, match="cannot become padding"):
            llama(ids[:, :1], attention_mask=mask, **{CACHE: cache})


TINY = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**TINY, "num_key_value_heads": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    "config, message",
    [
        (transformers.FalconConfig(**TINY), "cannot exchange its attention function"),
        (
            transformers.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4),
            "encoder-decoder",
        ),
        (transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2), "has linear_attention layers"),
        (transformers.JambaConfig(**GROUPED, attn_layer_period=2, attn_layer_offset=1), "has linear_attention layers"),
        (transformers.Llama4TextConfig(**GROUPED, head_dim=8, attention_chunk_size=24), "has chunked_attention layers"),
    ],
    ids=["no-interface", "encoder-decoder", "recurrent", "hybrid", "chunked"],
)
def test_models_that_cannot_be_served_are_refused(config, message):
    """When the cache is made, before anything is computed; the model stays as it was."""
    family = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = family.from_config(config)
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=message):
        MemoryCache(model, Full())
    assert model.config._attn_implementation == before


def test_layers_that_share_keys_are_refused():
    """Gemma 3n's upper layers read the keys of lower ones: forgetting would happen twice."""
    sizes = {**GROUPED, "num_hidden_layers": 4, "intermediate_size": [48] * 4, "head_dim": 8}
    extra = {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8}
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4}
    config = transformers.Gemma3nTextConfig(**sizes, **extra, **kinds, laurel_rank=4)
    with pytest.raises(ValueError, match="share keys"):
        MemoryCache(transformers.AutoModelForCausalLM.from_config(config), Full())


@pytest.mark.parametrize(
    "config, message",
    [
        (transformers.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1), "s_aux"),
        (
            transformers.DeepseekV3Config(
                **{**GROUPED, "num_key_value_heads": 4},
                **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
                **{"v_head_dim": 8, "first_k_dense_replace": 2},
            ),
            "attention never read",
        ),
    ],
    ids=["sinks", "keys-changed-after-the-cache"],
)
def test_attention_of_another_kind_is_refused(config, message, prompt):
    """In the first call, before it returns."""
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match=message):
        generate(model, prompt, Full(INTERVAL))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prompt_lookup_num_tokens": 3}, "cannot be taken back"),
        ({"assistant_model": "itself"}, "cannot be taken back"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "trust_remote_code"),
        ({"dola_layers": "low"}, "trust_remote_code"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    ],
    ids=["prompt-lookup", "assisted", "static", "contrastive", "dola", "attentions"],
)
def test_ways_to_generate_that_cannot_be_served_are_refused(llama, prompt, options, message):
    """One line of ValueError; the model can be used again."""
    if "assistant_model" in options:
        options = {"assistant_model": small_model("llama", seed=1)}
    with pytest.raises(ValueError, match=message):
        generate(llama, prompt, Streaming(12, INTERVAL), **options)
    generate(llama, prompt, Streaming(12, INTERVAL))


def test_taking_tokens_back_is_refused(llama, prompt):
    with MemoryCache(llama, Full(INTERVAL)) as cache, torch.no_grad():
        llama(prompt, **{CACHE: cache})
        with pytest.raises(ValueError, match="cannot be taken back"):
            cache.crop(-1)


def test_masks_of_other_shapes_are_refused(llama, prompt):
    with MemoryCache(llama, Full(INTERVAL)) as cache:
        with pytest.raises(ValueError, match="2D padding mask"):
            llama(prompt, attention_mask=torch.zeros(1, 1, PROMPT, PROMPT), **{CACHE: cache})
    assert cache.seen == 0


def test_a_cache_that_outlives_its_attention_is_refused(llama, prompt):
    """After `detach` the model would see only the new tokens."""
    with MemoryCache(llama, Full(INTERVAL)) as cache, torch.no_grad():
        llama(prompt, **{CACHE: cache})
    with pytest.raises(ValueError, match="attention was changed since"):
        llama(prompt[:, :1], **{CACHE: cache})


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


def test_images_that_see_themselves_whole_are_refused(prompt):
    """Gemma 3 shows an image's tokens all of that image: no order in which to forget."""
    text_config = CONFIGS["gemma3"]
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"image_token_index": 96, "boi_token_index": 95, "eoi_token_index": 94, "mm_tokens_per_image": 4}
    config = transformers.Gemma3Config(
        text_config=text_config.to_dict(), vision_config={**vision, "image_size": 8, "patch_size": 4}, **special
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    ids = prompt.clamp(max=93)
    ids[0, 3:7] = 96
    image = {"pixel_values": torch.randn(1, 3, 8, 8), "token_type_ids": (ids == 96).long()}
    with MemoryCache(model, Full(INTERVAL)) as cache, pytest.raises(ValueError, match="left to right"):
        model(ids, **image, **{CACHE: cache})
