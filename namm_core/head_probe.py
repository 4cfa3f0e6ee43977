"""Which key-value heads of a frozen model look far back: measured, one head at a time.

A head either sees a whole text, or only its first tokens and the nearest ones. What answers lose or gain where one head
changes sides is what it is worth beyond its window. In trained models a few heads are worth almost all (DuoAttention,
arXiv 2410.10819). Knows nothing of memories and tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "namm_head_probe"
_near: dict[int, tuple[Tensor, int, int]] = {}
"""By layer: (rows or 1, kv_heads) bool, the heads that see only what is near; first tokens and window that they see."""


@torch.no_grad()
def worths(
    model: PreTrainedModel,
    ids: Tensor,
    spans: list[tuple[int, int]],
    window: int,
    far: Tensor | None = None,
    sinks: int = 4,
) -> Tensor:
    """(layers, kv_heads) float64, nats: an answer's log-probability a token with a head that sees far, less without.

    ids: (tokens,) int64, a prompt and its answers; spans: where the answers stand in it (first, behind the last), none
    at its very beginning; far: (layers, kv_heads) bool, the heads that see far while another one is probed, None: all;
    window, sinks: newest and first tokens that the others see. One forward call for each layer, with a row for each of
    its heads. Raises ValueError for a model whose layers do not all see the whole text.
    """
    config = model.config.get_text_config(decoder=True)
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise ValueError(
            f"{type(model).__name__} has layers that do not see the whole text: their heads are not probed"
        )
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    far = torch.ones(layers, heads, dtype=torch.bool) if far is None else far.cpu()
    change = torch.eye(heads, dtype=torch.bool)
    with _probing(model):
        for layer in range(layers):
            _near[layer] = ~far[layer][None], sinks, window
        as_they_are = _sureness(model, ids[None], spans)
        rows = ids[None].expand(heads, -1)
        found = []
        for layer in range(layers):
            before, _near[layer] = _near[layer], (change ^ ~far[layer], sinks, window)
            found.append((_sureness(model, rows, spans) - as_they_are) * (1 - 2 * far[layer].to(rows.device).double()))
            _near[layer] = before
    return torch.stack(found)


def log_shares(worths: Tensor, least: float = 0.003) -> Tensor:
    """(layers, kv_heads) logarithms of the heads' shares of a budget: in proportion to what they are worth.

    worths: as of `worths`, nats; least: what every head is taken to be worth at least, about the noise of a few texts.
    """
    return (worths.clamp(min=0) + least).log()


@contextmanager
def _probing(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        _near.clear()
        model.set_attn_implementation(before)


def _sureness(model: PreTrainedModel, rows: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """(rows,) float64, mean over the spans of the mean log-probability of their tokens."""
    first = min(begin for begin, _ in spans) - 1
    logits = model(rows, use_cache=False, logits_to_keep=rows.shape[1] - first).logits[:, :-1].float()
    sure = logits.log_softmax(-1).gather(-1, rows[:, first + 1 :, None])[..., 0].double()
    return torch.stack([sure[:, a - first - 1 : b - first - 1].mean(-1) for a, b in spans]).mean(0)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Causal attention of whole texts, in which some heads see only what `_near` says."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    near, sinks, window = _near[int(module.layer_idx)]  # type: ignore[arg-type]  # attributes count as tensors
    mask = None
    if near.any():
        at = torch.arange(tokens, device=query.device)
        sees = at[None] <= at[:, None]
        close = sees & ((at[None] < sinks) | (at[None] > at[:, None] - window))
        near = near.to(query.device).repeat_interleave(groups, dim=1)
        mask = torch.where(near[..., None, None], close, sees)
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, is_causal=mask is None)


AttentionInterface.register(NAME, _attend)
