"""`NammPress`: a memory, or any other policy, as a press of NVIDIA's `kvpress`, for its pipeline and its evaluation.

    press = NammPress(Namm.from_pretrained("models/recall-namm"))
    pipeline("kv-press-text-generation", model=...)(context, question=question, press=press)

The protocol is `kvpress`'s, *context, then question*: the context is read with the full cache, then each layer forgets
once, and the question comes after it. Where all heads of a model keep as many tokens, the others leave the cache; heads
that keep fewer than the fullest one are filled up with tokens that `kvpress` hides from attention, as it does for its
own AdaKV. Knows no task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, QuantizedCache

from namm_core import Namm, rotary
from namm_core.once import Once
from namm_core.one_layer import kept
from namm_core.protocols import Policy

try:
    from kvpress import BasePress
    from kvpress.utils import get_prerope_query_states
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"NammPress needs {error.name}: see docs/policies.md, for kvpress 0.5.5 asks for another transformers",
        name=error.name,
    ) from error


@dataclass
class NammPress(BasePress):
    """A press in which a policy decides what stays.

    Raises ValueError for a policy that tells rows apart, and in use for a batch of more than one row, which kvpress's
    pipeline never makes, and for a quantised cache.
    """

    policy: Policy
    """A `Namm`, or any other policy; its `update_interval` is not used unless `streaming`."""
    streaming: bool = False
    """Whether it forgets every `update_interval` tokens as the context is read, not once at its end. What a layer hands
    on to the next one is computed with the full cache in either case."""
    removed: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    """Share of the tokens that each layer forgot of the last context."""

    def __post_init__(self) -> None:
        if self.policy.rows != 1:
            raise ValueError(f"a press serves one policy for all texts, not one with {self.policy.rows} rows")

    @property
    def compression_ratio(self) -> float:
        """Share of the last context that was forgotten, mean over layers; 0 before the first one."""
        return sum(self.removed.values()) / max(len(self.removed), 1)

    @compression_ratio.setter
    def compression_ratio(self, ratio: float) -> None:
        """Sets the size of a policy that takes one. Raises ValueError for one that decides itself what it keeps."""
        if not self.policy.takes_budget:
            raise ValueError("this memory decides itself how much it keeps: it takes no compression_ratio")
        if not 0 <= ratio < 1:
            raise ValueError(f"compression_ratio lies in 0 to 1, 1 left out, not {ratio}")
        if isinstance(self.policy, Namm):
            self.policy = Namm(self.policy.config, self.policy.theta, self.policy.statistics, float(1 - ratio))
        else:
            self.policy = dataclasses.replace(self.policy, budget=float(1 - ratio))  # type: ignore[type-var]

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Iterator[None]:
        """While open, a context is read with the full cache; at its end each layer forgets. See `BasePress`."""
        with super().__call__(model):
            yield
            self._take_out()

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        """Called by kvpress before a context is read."""
        self._model = model
        self._read: dict[int, tuple[Any, Any, Tensor]] = {}
        self.removed.clear()

    @torch.no_grad()
    def forward_hook(self, module: Any, input: list[Tensor], kwargs: dict[str, Any], output: Any) -> Any:
        """Called by kvpress after each attention layer: what stays of a context that was read in one call.

        kvpress's own hook reads `cache_position` and `past_key_values`, which transformers passes no more.
        """
        hidden_states, cache = kwargs["hidden_states"], kwargs["cache" if "cache" in kwargs else "past_key_values"]
        layer, config = cache.layers[module.layer_idx], self._model.config.get_text_config(decoder=True)
        if layer.get_seq_length() != hidden_states.shape[1]:
            return output
        if len(hidden_states) != 1 or isinstance(cache, QuantizedCache):
            raise ValueError("a press of ours reads one text at a time into a cache that is not quantised")
        keep = kept(
            self.policy if self.streaming else Once(self.policy, hidden_states.shape[1]),
            _rotated(get_prerope_query_states(module, hidden_states), *kwargs["position_embeddings"]),
            layer.keys,
            layer.values,
            module.layer_idx,
            config.num_hidden_layers,
            rotary.find(self._model, module.layer_idx),
            module.scaling,
        )
        self._read[module.layer_idx] = module, layer, keep
        self.removed[module.layer_idx] = 1 - float(keep.double().mean())
        return output

    def _take_out(self) -> None:
        """Leaves as many tokens in every head as the fullest one of all layers keeps: one mask serves the whole model.

        What stays stands at the end of each head, in the order of the text; others have forgotten tokens in front,
        which kvpress hides from attention.
        """
        width = max((int(keep.sum(-1).max()) for _, _, keep in self._read.values()), default=0)
        for module, layer, keep in self._read.values():
            order = keep.int().argsort(dim=-1, stable=True)[..., -width:]
            layer.keys, layer.values = _taken(layer.keys, order), _taken(layer.values, order)
            hidden = torch.arange(width, device=keep.device) < width - keep.sum(-1, keepdim=True)
            module.masked_key_indices = hidden.nonzero(as_tuple=True) if bool(hidden.any()) else None
        self._read.clear()


def _taken(held: Tensor, order: Tensor) -> Tensor:
    """held (rows, kv_heads, tokens, size) at order (rows, kv_heads, kept)."""
    return held.gather(2, order[..., None].expand(*order.shape, held.shape[-1])).contiguous()


def _rotated(query: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries (rows, heads, tokens, size) after rotary embedding; cos, sin: (rows, tokens, rotated size)."""
    size = cos.shape[-1] // 2
    return rotary.turn(query, cos[:, None, :, :size], sin[:, None, :, :size])
