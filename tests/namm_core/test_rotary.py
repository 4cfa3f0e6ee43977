"""A layer's rotation, found in the model, against the model's own functions."""

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import CohereConfig, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, SmolLM3Config
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as of_llama

from namm_core import MemoryCache
from namm_core.policies import ExpectedAttention
from namm_core.rotary import find, turn

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
KINDS = ["sliding_attention", "full_attention"]
MODELS = {
    "llama": LlamaConfig(**SMALL),
    "yarn": LlamaConfig(**SMALL, rope_parameters=YARN),  # scales what it rotates
    "gpt-neox": GPTNeoXConfig(**SMALL),  # rotates a quarter of each head
    "gemma-3": Gemma3TextConfig(**SMALL, head_dim=16, num_key_value_heads=2, layer_types=KINDS, sliding_window=16),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1])
def test_what_the_model_rotates_is_rotated_back(name, layer):
    model = Auto.from_config(MODELS[name])
    rotary, x = find(model, layer), torch.randn(2, 3, 50, 16)
    positions = torch.stack([torch.arange(50), torch.arange(50) + 20])
    module = model.get_decoder().rotary_emb
    cos, sin = module(x, positions, *([KINDS[layer]] if name == "gemma-3" else []))
    n = cos.shape[-1]
    rotated = torch.cat([of_llama(x[..., :n], x[..., :n], cos, sin)[0], x[..., n:]], dim=-1)
    assert n == (4 if name == "gpt-neox" else 16) and not torch.allclose(rotated, x, atol=0.1)
    cos, sin = rotary.angles(positions[:, None])
    torch.testing.assert_close(turn(x, cos, sin), rotated)
    torch.testing.assert_close(rotary.unrotate(rotated, positions[:, None]), x, atol=1e-5, rtol=1e-5)


def test_layers_of_two_kinds_have_two_rotations():
    model = Auto.from_config(MODELS["gemma-3"])
    local, whole = (find(model, layer).angles(torch.tensor([7]))[0] for layer in range(2))
    assert not torch.allclose(local, whole)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None),
        CohereConfig(**SMALL),  # pairs neighbouring dimensions
        SmolLM3Config(**SMALL, num_key_value_heads=2, no_rope_layers=[0, 0]),
    ],
    ids=["gpt-2", "cohere", "smollm-3, layers without"],
)
def test_what_is_not_known_is_none_and_the_policy_works_without(config):
    model = Auto.from_config(config).eval()
    assert find(model, 1) is None
    ids = torch.randint(1, 64, (1, 40), generator=torch.Generator().manual_seed(0))
    with MemoryCache(model, ExpectedAttention(10, 16)) as cache, torch.no_grad():
        logits = model(ids, past_key_values=cache).logits
    assert (cache.kept_counts() == 10 + 8).all() and logits.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_expected_attention_takes_each_models_own_rotation_and_scale(name):
    """The queries' mean in the summary is that of the model's own projection, before rotation."""
    model = Auto.from_config(MODELS[name]).eval()
    ids, seen = torch.randint(1, 64, (1, 24), generator=torch.Generator().manual_seed(0)), {}

    def normed(module, args, out):  # Gemma 3 norms its queries before it rotates them: (rows, heads, tokens, size)
        seen["queries"] = out

    def projected(module, args, out):
        if name == "gpt-neox":  # queries, keys and values of a head stand together
            out = out.unflatten(-1, (4, -1))[..., :16].flatten(2)
        seen["queries"] = out.unflatten(-1, (4, 16)).transpose(1, 2)

    if name == "gpt-neox":
        hook = model.gpt_neox.layers[1].attention.query_key_value.register_forward_hook(projected)
    elif name == "gemma-3":
        hook = model.model.layers[1].self_attn.q_norm.register_forward_hook(normed)
    else:
        hook = model.model.layers[1].self_attn.q_proj.register_forward_hook(projected)
    with MemoryCache(model, ExpectedAttention(10, 12)) as cache, torch.no_grad():
        model(ids, past_key_values=cache)
    hook.remove()
    summary, queries = cache.layers[1].summary, seen["queries"][:, :, 4:]
    torch.testing.assert_close(summary["mean"], queries.mean(2), atol=1e-5, rtol=1e-4)
    scatter = torch.stack([20 * torch.cov(head.T, correction=0) for head in queries[0]])
    torch.testing.assert_close(summary["scatter"][0], scatter, atol=1e-4, rtol=1e-4)
    scaling = 256**-0.5 if name == "gemma-3" else 0.25  # Gemma's query_pre_attn_scalar is 256
    assert cache.layers[1].scaling == pytest.approx(scaling)
