"""Random models so small that a test can afford them, for the tests of every floor."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama in evaluation mode: 2 layers, 4 query heads on 2 KV heads of 8, 97 tokens, no special ones.

    Its weights are large (standard deviation 0.3), so that attention is sharp. changes: any of `LlamaConfig`'s
    arguments. The same arguments give the same weights.
    """
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**shape | changes)).eval()
