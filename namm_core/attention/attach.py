"""What memories change on a model, in one place, and how it is undone when the last of them has gone.

Any number of memories may be open on one model, and be opened and closed in any order and from any thread: the first
sets the attention function and the guards, the last one takes them off. The guards stand on the model that runs, and
on the models in it, so that they hold whoever calls: a wrapper, a compiled model, or a caller of an inner model. Knows
nothing of what a memory holds.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import GenerationMixin, PreTrainedModel

from namm_core import guards
from namm_core.attention.function import NAME

_LOCK = threading.RLock()
_ATTACHED: weakref.WeakKeyDictionary[nn.Module, _Attachment] = weakref.WeakKeyDictionary()
"""What is changed at present, by the decoder whose attention it is."""
_FED_ANEW = {"use_cache": (False, True), "cache_implementation": (..., None)}
"""Settings of a model's own `GenerationConfig` that would keep `generate` from using a memory: (value, ours)."""


def running(model: nn.Module) -> PreTrainedModel:
    """The transformers model that runs when `model` is called: itself, or what it wraps (LoRA, `torch.compile`).

    Raises ValueError where there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ValueError(f"a memory serves models of transformers, not {type(model).__name__}")


class Hold:
    """One memory's claim to a model: the model stays attached while any claim to it is held.

    A claim ends with `release`, or when nothing refers to it any more.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises ValueError where the model cannot exchange its attention function."""
        token = object()
        with _LOCK:
            decoder = model.get_decoder()
            while True:  # the garbage collector may end another claim at any moment, also on this thread
                attachment = _ATTACHED.get(decoder)
                if attachment is None:
                    attachment = _ATTACHED.setdefault(decoder, _Attachment(model))
                attachment.claims.add(token)
                if _ATTACHED.get(decoder) is attachment:
                    break
        self._end = weakref.finalize(self, _release, weakref.ref(decoder), attachment, token)
        self._end.atexit = False

    def release(self) -> None:
        """Ends the claim; a second time it does nothing."""
        self._end()


def _release(decoder: weakref.ref[nn.Module], attachment: _Attachment, token: object) -> None:
    with _LOCK:
        attachment.claims.discard(token)
        module = decoder()
        if not attachment.claims and module is not None and _ATTACHED.get(module) is attachment:
            del _ATTACHED[module]
            attachment.undo()


class _Attachment:
    """What is changed on one model, and what was there before."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.claims: set[object] = set()
        self._model = model
        self._before = _exchange_attention(model)
        self._hooks: list[RemovableHandle] = [
            guards.watch(module) for module in model.modules() if isinstance(module, PreTrainedModel)
        ]
        # What a memory does differs from call to call: compiled code would be compiled anew at each step.
        self._compiled = {
            module: call
            for module in model.modules()
            if (call := module.__dict__.get("_compiled_call_impl")) is not None
        }
        for module in self._compiled:
            module._compiled_call_impl = None
        self._settings: dict[str, tuple[Any, Any]] = {}
        self._generation = model.generation_config if model.can_generate() else None
        for name, (unwanted, ours) in _FED_ANEW.items():
            found = getattr(self._generation, name, ours)
            if found != ours and unwanted in (found, ...):
                self._settings[name] = (found, ours)
                setattr(self._generation, name, ours)
        self.generate = model.__dict__.get("generate")
        """Somebody else's `generate`, set on this very model."""
        if self._generation is not None:
            model.__dict__["generate"] = types.MethodType(_generate, model)

    def undo(self) -> None:
        """Puts everything back that nobody else has changed since."""
        for hook in self._hooks:
            hook.remove()
        for module, call in self._compiled.items():
            if module._compiled_call_impl is None:
                module._compiled_call_impl = call
        for name, (found, ours) in self._settings.items():
            if getattr(self._generation, name) == ours:
                setattr(self._generation, name, found)
        generate = self._model.__dict__.get("generate")
        if isinstance(generate, types.MethodType) and generate.__func__ is _generate:
            del self._model.__dict__["generate"]
            if self.generate is not None:
                self._model.__dict__["generate"] = self.generate
        self._model.set_attn_implementation(self._before)


@functools.wraps(GenerationMixin.generate)
def _generate(self: Any, *arguments, **settings) -> Any:
    """`generate` of a model that memories are open on."""
    guards.check_generation(arguments, settings)
    attachment = _ATTACHED.get(self.get_decoder())
    if attachment is not None and attachment.generate is not None:
        return attachment.generate(*arguments, **settings)
    return type(self).generate(self, *arguments, **settings)


def _exchange_attention(model: PreTrainedModel) -> dict[str, str]:
    """Sets the model's attention function to ours; returns what was set before.

    In a model with parts (vision, audio) only the text part changes: the others are not causal and remember nothing.
    """
    text = model.config.get_text_config(decoder=True)
    parts = {name: part for name in model.config.sub_configs if (part := getattr(model.config, name)) is not None}
    before = {"": model.config._attn_implementation} | {n: part._attn_implementation for n, part in parts.items()}
    ours = {"": NAME} | {name: NAME if part is text else before[name] for name, part in parts.items()}
    if before != ours:
        model.set_attn_implementation(ours)
        if text._attn_implementation != NAME:
            raise ValueError(f"{type(model).__name__} cannot exchange its attention function")
    return before
