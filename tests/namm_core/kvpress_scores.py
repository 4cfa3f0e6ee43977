"""What `kvpress` says of a text: `python -m tests.namm_core.kvpress_scores FILE` writes its presses' scores.

Runs with kvpress on the path (`tests.kvpress_wheels`), in a process of its own. The presses' `score` is called as it
stands, on what each layer of a tiny model computes from `TEXT`; only the hook around it is ours, since theirs reads an
argument that transformers passes no more.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaForCausalLM

from namm_core.support import cache_argument
from tests.tiny_models import tiny_llama

ROWS, TOKENS, KEPT = 2, 240, 96
MODEL = {
    "vocab_size": 512,
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}


def text() -> torch.Tensor:
    """(rows, tokens) int64, none twice in a row, whose keys would have the same norm."""
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(MODEL["vocab_size"], generator=generator)[:TOKENS] for _ in range(ROWS)])


def model() -> LlamaForCausalLM:
    """Two query heads share each KV head of 16."""
    return tiny_llama(**MODEL)


def main(file: str) -> None:
    """Writes (rows, kv_heads, tokens) scores, named press.layer."""
    import kvpress

    ratio = 1 - KEPT / TOKENS
    presses = {
        "knorm": kvpress.KnormPress(ratio),
        "keydiff": kvpress.KeyDiffPress(ratio),
        "streaming_llm": kvpress.StreamingLLMPress(ratio, n_sink=4),
        "snapkv": kvpress.SnapKVPress(ratio, window_size=64, kernel_size=5),
        "tova": kvpress.TOVAPress(ratio),
        "expected_attention": kvpress.ExpectedAttentionPress(ratio, epsilon=0.0),
        "expected_attention_epsilon": kvpress.ExpectedAttentionPress(ratio, epsilon=0.01),
        "observed_attention": kvpress.ObservedAttentionPress(ratio),
    }
    adaptive = {
        f"adakv_{name}": kvpress.AdaKVPress(presses[name], alpha_safeguard=0.0)
        for name in ("keydiff", "expected_attention", "snapkv")
    }
    found: dict[str, torch.Tensor] = {}
    llama = model()
    cache = DynamicCache(config=llama.config)

    def score(module: Any, arguments: tuple, settings: dict[str, Any], output: Any) -> None:
        layer = cache.layers[module.layer_idx]
        module.rotary_emb = llama.model.rotary_emb  # as `BasePress.__call__` does
        given = (module, settings["hidden_states"], layer.keys, layer.values)
        for name, press in presses.items():
            weights = output[1] if name == "observed_attention" else None  # the others compute what they need
            found[f"{name}.{module.layer_idx}"] = press.score(*given, weights, settings).contiguous()
        module.config._attn_implementation = "sdpa"  # AdaKV asks for any but eager, which is not run again here
        for name, press in adaptive.items():
            press.compress(*given, None, settings)
            kept = torch.ones(layer.keys.shape[:3])
            kept[module.masked_key_indices] = 0.0
            found[f"{name}.{module.layer_idx}"] = kept
            module.masked_key_indices = None
        module.config._attn_implementation = "eager"

    llama.set_attn_implementation("eager")
    for layer in llama.model.layers:
        layer.self_attn.register_forward_hook(score, with_kwargs=True)
    with torch.inference_mode():
        llama(text(), **{cache_argument(llama): cache})
    save_file(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
