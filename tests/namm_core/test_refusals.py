"""What a memory cannot serve is refused in one line, before it could go wrong: models, masks, ways to generate."""

from __future__ import annotations

import pytest
import torch
import transformers

from namm_core import MemoryCache
from namm_core.policies import Full, Streaming
from tests.namm_core.architectures import CONFIGS, small_model, text
from tests.namm_core.matrix import CACHE, INTERVAL, PROMPT, generate, namm


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return small_model(request.param)


@pytest.fixture(scope="module")
def llama():
    return small_model("llama")


@pytest.fixture
def prompt() -> torch.Tensor:
    return text(PROMPT, seed=1)[None]


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


def test_a_call_without_a_token_is_refused(llama, prompt):
    with MemoryCache(llama, Full(INTERVAL)) as cache, torch.no_grad():
        llama(prompt, **{CACHE: cache})
        with pytest.raises(ValueError, match="input_ids holds no token"):
            llama(prompt[:, :0], **{CACHE: cache})


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
