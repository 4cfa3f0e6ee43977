"""`MemoryCache`: the transformers cache that really frees what a policy forgets.

    cache = MemoryCache(model, namm)
    model.generate(input_ids, cache=cache)  # past_key_values=cache before transformers 5.24

Each layer holds the keys and values that are kept, their true positions, and the policy's state of the same tokens
(`layer.memory_layer`). Forgetting happens inside attention (`attention.function`), layer by layer. Knows nothing of
how a policy decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from namm_core import rotary, support
from namm_core.attention import attach as attaching
from namm_core.layer import stored_file
from namm_core.layer.memory_layer import MemoryLayer
from namm_core.layer.stored import Stored
from namm_core.protocols import Policy
from namm_core.text_read import TextRead


class MemoryCache(Cache):
    """A key-value cache whose content a policy decides.

    model: any transformers model whose attention goes through `AttentionInterface`; its attention function is set
    here, and set back by `detach` (or at the end of a `with` block). policy: a `Namm` or any other `Policy`. tiled:
    whether attention runs in tiles that fit a processor's cache, or in one for a whole block; None: tiles on CPUs.
    fused: whether it goes through Triton's kernels (docs/kernel.md) where they serve; not yet tried on a GPU.
    Raises ValueError for models that it cannot serve (`namm_core.support` says which), or that cannot exchange their
    attention function; calls whose answer would be wrong raise ValueError before they begin.
    """

    def __init__(self, model: PreTrainedModel, policy: Policy, tiled: bool | None = None, fused: bool = False) -> None:
        running = attaching.running(model)
        config = running.config.get_text_config(decoder=True)
        support.check_model(running)
        layers = config.num_hidden_layers
        super().__init__(
            layers=[MemoryLayer(policy, i, rotary.find(running, i), tiled, fused, layers) for i in range(layers)]
        )
        self.policy = policy
        self._model = running
        self._text = TextRead()
        self._hold: attaching.Hold | None = None
        self.attach()

    def attach(self) -> bool:
        """Sets the model's attention function, also again after `detach`; says whether this memory had not set it."""
        if self._hold is not None:
            return False
        self._hold = attaching.Hold(self._model)
        return True

    def detach(self) -> None:
        """Leaves the model, which is as it was once no other memory is open on it."""
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def fork(self) -> MemoryCache:
        """A second continuation of the same text, which shares what is held so far instead of copying it.

        It is open on the model where this one is, guards included, until its own `detach`.
        """
        return self._twin([layer.forked() for layer in self._layers])

    def __copy__(self) -> MemoryCache:
        return self.fork()

    def __deepcopy__(self, memo: dict) -> MemoryCache:
        """Its content in tensors of its own; model and policy are shared."""
        twin = memo[id(self)] = self._twin([layer.copied() for layer in self._layers])
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(support.NO_PICKLE)

    def _twin(self, layers: list[MemoryLayer]) -> MemoryCache:
        twin: MemoryCache = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.layers, twin._text, twin._hold = list(layers), self._text.copied(), None
        if self._hold is not None:
            twin.attach()
        return twin

    def save(self, file: str | Path) -> None:
        """Writes what is held to a safetensors file, whole or not at all; neither model nor policy are in it.

        Raises ValueError in the middle of a call, or while rows are shared (`share`).
        """
        stored_file.write(Path(file), [layer.forked() for layer in self._layers])

    @classmethod
    def load(
        cls, file: str | Path, model: PreTrainedModel, policy: Policy, tiled: bool | None = None, fused: bool = False
    ) -> MemoryCache:
        """A memory as `save` wrote it, on the model's device.

        Raises ValueError for a file that is none, and for another model's or policy's: layers, heads, kind of policy
        and update interval are compared, weights are not. A memory that was read again does not know its text: what
        `generate` is given must go on from it.
        """
        cache = cls(model, policy, tiled, fused)
        try:
            stored_file.read(Path(file), cache._layers, cache._model.device)
        except BaseException:
            cache.detach()
            raise
        cache._text.known = False
        return cache

    def __enter__(self) -> MemoryCache:
        return self

    def __exit__(self, *_) -> None:
        self.detach()

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """See `Cache.update`; the layer before must have been read by now."""
        if torch.compiler.is_compiling():
            return _uncompiled_update(self, key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx and self._layers[layer_idx - 1].pending:
            raise ValueError(support.UNREAD)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def activate_past_recording(self) -> None:
        """Called by assisted decoding before it begins: it would have to take tokens back."""
        raise ValueError(support.NO_WAY_BACK)

    def offload(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Raises ValueError: a memory stays where its model is."""
        raise ValueError(support.NO_OFFLOAD)

    def prefetch(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Raises ValueError, as `offload`."""
        raise ValueError(support.NO_OFFLOAD)

    def share(self) -> None:
        """The rows of a fresh cache stand for samples alone until `spread`: candidates differ once they forget.

        No more may be fed meanwhile than one update interval.
        """
        for layer in self._layers:
            layer.share()

    def spread(self, candidates: int) -> None:
        """After exactly one interval: each row becomes `candidates` rows, row = candidate * samples + sample."""
        rows = len(self.fed)
        for layer in self._layers:
            layer.spread(candidates)
        self._text.select(list(range(rows)) * candidates, self.seen)

    def keep_open(self, value: bool) -> None:
        """Whether another call follows at once: what is held stays padded until one after which none does."""
        for layer in self._layers:
            layer.keep_open(value)

    def reset(self) -> None:
        """Forgets everything that was fed, for another text."""
        super().reset()
        self._text = TextRead()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Moves rows as beam search wants them; beam_idx: (rows,) int64."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times in a row."""
        self.batch_select_indices(torch.arange(len(self.fed)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices`, (n,) int64 or (rows,) bool, in that order."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        super().batch_select_indices(indices)
        if self.seen:
            self._text.select(indices.tolist(), self.seen)

    @property
    def text(self) -> TextRead:
        """Which tokens were fed."""
        return self._text

    @property
    def seen(self) -> int:
        """Columns fed, padding included."""
        return self.get_seq_length()

    @property
    def fed(self) -> list[int]:
        """Real tokens fed, per row."""
        return list(self._layers[0].fed)

    def kept_positions(self, layer: int) -> list[list[Tensor]]:
        """True positions that `layer` holds, ascending: `[batch][kv_head]` -> (kept,) int64."""
        stored = self._layers[layer].stored
        if stored is None:
            return []
        return [[head[head >= 0] for head in row] for row in stored.dense().positions]

    def kept_counts(self) -> Tensor:
        """(layers, rows, kv_heads) int64, entries held."""
        return torch.stack([stored.counts.cpu() for stored in self._stored])

    def kept_fractions(self) -> list[list[float]]:
        """Per row and layer: entries held / tokens fed, mean over KV heads."""
        return (self.kept_counts().double().mean(-1) / torch.tensor(self.fed)).T.tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of the storage behind keys and values."""
        return sum(_nbytes(t) for stored in self._stored for t in stored.main())

    @property
    def state_nbytes(self) -> int:
        """Bytes of everything else that is held: positions, counts, the policy's state and its summaries."""
        rest = sum(_nbytes(t) for stored in self._stored for t in stored.beside())
        return rest + sum(_nbytes(t) for layer in self._layers for t in (layer.row, *layer.summary.values()))

    @property
    def _layers(self) -> list[MemoryLayer]:
        return cast("list[MemoryLayer]", self.layers)

    @property
    def _stored(self) -> list[Stored]:
        """Of all layers that hold something."""
        return [layer.stored for layer in self._layers if layer.stored is not None]


_uncompiled_update = torch.compiler.disable(MemoryCache.update)


def _nbytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() if tensor.numel() else 0
