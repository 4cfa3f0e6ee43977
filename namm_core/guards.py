"""Where calls are checked: on every model that may run with a memory, and on `generate` before it begins.

Which calls are refused, and why, stands in `namm_core.support`. Knows nothing of who attaches guards to which model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from namm_core import support
from namm_core.layer.memory_layer import MemoryLayer
from namm_core.protocols import Fed

_NAMES = ("cache", "past_key_values")
"""What transformers calls a cache among a call's arguments: now, and before 5.24."""


def watch(model: PreTrainedModel) -> RemovableHandle:
    """Checks each call of `model` with a memory before it begins."""
    names = list(inspect.signature(model.forward).parameters)

    def before(module: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            uncompiled(module, args, kwargs)
            return
        call = dict(zip(names, args, strict=False)) | kwargs
        memory = _memory(call)
        if memory is not None:
            if "output_attentions" not in call:
                call["output_attentions"] = module.config.output_attentions
            support.check_call(memory, call)
            ids = call.get("input_ids")
            memory.text.announce(memory.seen, ids if isinstance(ids, Tensor) and ids.ndim == 2 else None)

    uncompiled = torch.compiler.disable(before)
    return model.register_forward_pre_hook(before, with_kwargs=True)


def check_generation(arguments: tuple, settings: Mapping[str, Any]) -> None:
    """Checks a call of `generate` with a memory before it begins: only there is the whole text to be seen."""
    memory = _memory(settings)
    if memory is None:
        return
    ids = next(
        (given for given in (*arguments[:1], settings.get("inputs"), settings.get("input_ids")) if given is not None),
        None,
    )
    if isinstance(ids, Tensor) and ids.ndim == 2 and settings.get("inputs_embeds") is None:
        support.check_prompt(memory, ids, settings.get("attention_mask"))


def _memory(call: Mapping[str, Any]) -> Fed | None:
    """The memory among a call's arguments, if there is one."""
    for name in _NAMES:
        given = call.get(name)
        if isinstance(given, Cache) and given.layers and isinstance(given.layers[0], MemoryLayer):
            return cast("Fed", given)
    return None
