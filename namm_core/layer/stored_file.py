"""A memory's content as a safetensors file: tensors, and a few numbers beside them. Nothing in it is run when read.

Knows nothing of models; of policies only which kind they are, and what their state is called.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from namm_core.layer.memory_layer import MemoryLayer
from namm_core.layer.stored import Dense, store
from namm_core.protocols import State

FORMAT = "namm-memory-1"


def write(file: Path, layers: Sequence[MemoryLayer]) -> None:
    """Writes what the layers hold, in one step. Raises ValueError while rows are shared."""
    tensors: dict[str, Tensor] = {}
    facts = []
    for layer in layers:
        if layer.shared:
            raise ValueError("a memory whose rows are shared by candidates cannot be saved before `spread`")
        facts.append({"seen": layer.seen, "fed": layer.fed, "padded": False})
        if layer.stored is None:
            continue
        held, at = layer.stored.dense(), f"{layer.index}"
        facts[-1]["padded"] = held.padded
        tensors |= {f"{at}.keys": held.keys, f"{at}.values": held.values, f"{at}.positions": held.positions}
        tensors |= {f"{at}.row": layer.row}
        tensors |= {f"{at}.state.{name}": t for name, t in held.state.items()}
        tensors |= {f"{at}.summary.{name}": t for name, t in layer.summary.items()}
    about = {"format": FORMAT, "policy": _kind(layers[0]), "layers": facts}
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(
            {name: t.detach().contiguous().clone() for name, t in tensors.items()}, part, {"memory": json.dumps(about)}
        )
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def read(file: Path, layers: Sequence[MemoryLayer], device: torch.device) -> None:
    """Fills fresh layers with what `write` wrote. Raises ValueError, one line, where it does not fit them."""
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads((opened.metadata() or {})["memory"])
            tensors = {name: opened.get_tensor(name).to(device) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        fits = about["format"] == FORMAT
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such file") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no saved memory ({error})") from None
    if not fits or about["policy"] != _kind(layers[0]) or len(about["layers"]) != len(layers):
        raise ValueError(
            f"{file} holds {len(about['layers'])} layers of {about['policy']}, wanted are {len(layers)} of "
            f"{_kind(layers[0])}"
        )
    try:
        for layer, facts in zip(layers, about["layers"], strict=True):
            _fill(layer, facts, tensors)
    except (KeyError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"{file} is no whole memory ({type(error).__name__}: {error})") from None


def _fill(layer: MemoryLayer, facts: dict, tensors: dict[str, Tensor]) -> None:
    if not facts["seen"]:
        return
    at = f"{layer.index}"
    keys, values = tensors[f"{at}.keys"], tensors[f"{at}.values"]
    layer.lazy_initialization(keys, values)
    state, summary = _named(tensors, f"{at}.state."), _named(tensors, f"{at}.summary.")
    held = Dense(keys, values, tensors[f"{at}.positions"], state, facts["padded"])
    layer.restore(store(held), summary, tensors[f"{at}.row"], facts["seen"], facts["fed"])


def _named(tensors: dict[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _kind(layer: MemoryLayer) -> str:
    policy = layer.policy
    return f"{type(policy).__name__}(update_interval={policy.update_interval}, rows={policy.rows})"
