"""What a memory cannot serve, and why: refused before anything is computed, never computed wrongly.

Knows nothing of how anything is remembered, or of where calls are caught (`namm_core.guards`); asks a cache only what
it was fed.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from namm_core.protocols import Fed

_KINDS = {"full_attention", "sliding_attention"}

NO_WAY_BACK = (
    "what a memory has forgotten cannot be taken back: leave out what needs a cache that can be cropped "
    "(assisted decoding: assistant_model, prompt_lookup_num_tokens; contrastive search)"
)

UNREAD = (
    "keys were stored that this memory's attention never read: an earlier call stopped midway, or the model's "
    "attention was changed since (make a new MemoryCache), or a layer of this model does not use it (not supported)"
)

NO_WEIGHTS = "heads of a memory hold different tokens: for output_attentions, call the model without it"

NO_OFFLOAD = (
    "a memory stays on the model's device: it is small because it forgets; it cannot be offloaded or prefetched"
)

NO_PICKLE = (
    "a memory refers to its model and its policy, which would be pickled with it: use cache.save(FILE) and "
    "MemoryCache.load(FILE, model, policy)"
)


def cache_argument(model: PreTrainedModel) -> str:
    """What `forward` and `generate` of a model call their cache: `cache` since transformers 5.24.

    The name before, `past_key_values`, is taken until version 6, with a warning.
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def check_model(model: PreTrainedModel) -> None:
    """Raises ValueError, one line, for models that are more than layers of causal attention."""
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder model; a memory serves decoder-only models")
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ()) - _KINDS
    if getattr(text, "attention_chunk_size", None) is not None:
        kinds.add("chunked_attention")
    if not kinds and getattr(model, "_is_stateful", False):
        kinds.add("recurrent")
    if kinds:
        raise ValueError(f"{name} has {', '.join(sorted(kinds))} layers; a memory serves full and sliding attention")
    stock = DynamicCache(config=text).layers
    if len(stock) != text.num_hidden_layers or {type(s) for s in stock} - {DynamicLayer, DynamicSlidingWindowLayer}:
        raise ValueError(f"{name} has layers that share keys, or store other things; a memory serves plain attention")


def check_call(cache: Fed, call: dict[str, Any]) -> None:
    """Raises ValueError, one line, for a call whose answer would be wrong. call: the arguments of `forward`."""
    for name in ("input_ids", "inputs_embeds"):
        given = call.get(name)
        if isinstance(given, Tensor) and given.ndim >= 2 and 0 in given.shape[:2]:
            raise ValueError(f"{name} holds no token: a memory is fed one or more in each call")
    if call.get("output_attentions"):
        raise ValueError(NO_WEIGHTS)
    if call.get("use_cache") is False:
        raise ValueError(
            "use_cache=False with a memory: every step would feed it the whole text anew; leave it out, or set "
            "use_cache=True in the generation_config that is passed"
        )
    mask = call.get("attention_mask")
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise ValueError("a memory takes a 2D padding mask; masks of other shapes are not supported")
    real = mask.bool()
    last = call.get("logits_to_keep")
    # Logits of the last column alone are how `generate` begins. In evaluation, right padding is as good as left.
    if isinstance(last, int) and last == 1 and bool((~real[:, -1] & real.any(1)).any()):
        raise ValueError(
            "prompts are padded on the right, so that the next token would follow padding: pad on the left "
            "(tokenizer.padding_side = 'left')"
        )
    if cache.seen and cache.seen < mask.shape[1] and real[:, : cache.seen].sum(1).tolist() != cache.fed:
        raise ValueError(
            f"the mask shows {real[:, : cache.seen].sum(1).tolist()} tokens per row where this memory was fed "
            f"{cache.fed}: what was fed as a token cannot become padding, nor padding a token"
        )


def check_prompt(cache: Fed, ids: Tensor, mask: Tensor | None) -> None:
    """Raises ValueError, one line, for a prompt that does not go on where the memory stands.

    ids: (rows, columns), what `generate` is given: the whole text so far, or its end alone where the mask (rows,
    columns of the whole text) says so.
    """
    if not cache.seen:
        return
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > ids.shape[1]:
        if mask.shape[1] != cache.seen + ids.shape[1]:
            raise ValueError(
                f"the mask covers {mask.shape[1]} columns where this memory was fed {cache.seen} and {ids.shape[1]} "
                "are new: for another text, call cache.reset() first"
            )
    elif ids.shape[1] <= cache.seen or not cache.text.begins(ids, cache.seen):
        raise ValueError(
            f"this memory was fed {cache.seen} tokens that the prompt of {ids.shape[1]} does not begin with and go on "
            "from: pass the whole text so far and what is new, or call cache.reset() before another text"
        )
