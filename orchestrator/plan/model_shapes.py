"""A model's shape without its weights: from a folder, from the Hub's local cache, or from a small table.

Reads at most one config.json, fetches nothing and writes nothing. Knows no memories, no jobs and no tensors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from orchestrator.plan.cost import Model
from workers.config import ModelConfig
from workers.hub import is_repository
from workers.model_packages import CATALOGUE

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number, by precision."""

_LLAMA_3 = Model(32, 4096, 32, 8, 128, 14336, 128_256)
_LLAMA_32_1B = Model(16, 2048, 32, 8, 64, 8192, 128_256, tied=True)
_SMOLLM2 = Model(30, 576, 9, 3, 64, 1536, 49_152, tied=True)
_GEMMA3_270M = Model(18, 640, 4, 1, 256, 2048, 262_144, tied=True)
_QWEN3_1B7 = Model(28, 2048, 16, 8, 128, 6144, 151_936, tied=True)
_QWEN3_4B = Model(36, 2560, 32, 8, 128, 9728, 151_936, tied=True)
_QWEN3_8B = Model(36, 4096, 32, 8, 128, 12288, 151_936)
KNOWN = {
    "meta-llama/Meta-Llama-3-8B": _LLAMA_3,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3,
    "meta-llama/Llama-3.2-1B": _LLAMA_32_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_32_1B,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2,
    "google/gemma-3-270m": _GEMMA3_270M,
    "Qwen/Qwen3-1.7B": _QWEN3_1B7,
    "Qwen/Qwen3-1.7B-Base": _QWEN3_1B7,
    "Qwen/Qwen3-4B": _QWEN3_4B,
    "Qwen/Qwen3-4B-Base": _QWEN3_4B,
    "Qwen/Qwen3-8B": _QWEN3_8B,
    "Qwen/Qwen3-8B-Base": _QWEN3_8B,
}
"""Shapes as the published config.json of these repositories (or of copies of them) gives them."""

_KEYS = {
    "layers": ("num_hidden_layers", "n_layer"),
    "hidden": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "mlp": ("intermediate_size", "n_inner"),
    "vocabulary": ("vocab_size",),
}


def find(config: ModelConfig) -> tuple[Model | None, str]:
    """The model's shape and where it was found, or None and what is missing.

    Raises ValueError, one line, for a config.json that cannot be read.
    """
    size = BYTES[config.dtype]
    folder = Path(config.path) / "config.json"
    if folder.is_file():
        return _read(folder, size)
    if config.path in CATALOGUE:
        config = dataclasses.replace(config, path=CATALOGUE[config.path].repository)
    if not is_repository(config.path):
        return None, f"no folder {config.path} with a config.json, and no Hub repository (owner/name) either"
    cached = try_to_load_from_cache(config.path, "config.json", revision=config.revision)
    if isinstance(cached, str):
        return _read(Path(cached), size)
    if config.path in KNOWN:
        return dataclasses.replace(KNOWN[config.path], bytes=size), "table of public shapes, plan.model_shapes"
    return None, f"{config.path} is not in the Hub's local cache and not in orchestrator.plan.model_shapes.KNOWN"


def _read(file: Path, size: int) -> tuple[Model | None, str]:
    try:
        plain = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{file}: expected a mapping of settings")
    text = plain.get("text_config") or plain
    said = {name: next((text[key] for key in keys if key in text), None) for name, keys in _KEYS.items()}
    found = {name: value for name, value in said.items() if isinstance(value, int)}
    if missing := [_KEYS[name][0] for name in said if name not in found]:
        return None, f"{file} does not say: {', '.join(missing)}"
    if experts := next((key for key in ("num_experts", "num_local_experts") if text.get(key)), None):
        return None, f"{file} has {experts}: the formulas are for dense models"
    kv_heads = text.get("num_key_value_heads") or found["heads"]
    head = text.get("head_dim") or found["hidden"] // found["heads"]
    return Model(**found, kv_heads=kv_heads, head=head, bytes=size, tied=_tied(plain, text)), str(file)


def _tied(plain: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    return bool(text.get("tie_word_embeddings", plain.get("tie_word_embeddings", False)))
