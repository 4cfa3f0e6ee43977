"""`MemoryCache`: the transformers cache that really frees what a policy forgets.

    cache = MemoryCache(model, namm)
    model.generate(input_ids, past_key_values=cache)

Each layer holds its kept keys and values, true positions beside them, and the policy's state of the same tokens
(`layer.stored`). Forgetting happens inside attention (`attention.function`), layer by layer. Knows nothing of
how a policy decides.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from namm_core import rotary, support
from namm_core.attention import function as attention
from namm_core.attention import fused
from namm_core.attention.tiles import Whole, longest_rows
from namm_core.layer.blocks import Block, plan
from namm_core.layer.capacity import added, lengthened, roomy
from namm_core.layer.packing import Packing
from namm_core.layer.stored import Held
from namm_core.policies.base import Policy, View, Watch


class MemoryLayer(CacheLayerMixin):
    """What one attention layer remembers.

    During a forward call (`open` to `close`) `keys`, `values`, `positions` and `state` are dense, each head's tokens
    packed to the right. Between calls, heads of unequal length are stored end to end (`Ragged`), and what came since
    their last update stands behind them, dense.
    """

    is_sliding = False

    def __init__(
        self,
        policy: Policy,
        index: int,
        embedding: rotary.Rotary | None = None,
        tiled: bool | None = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.index = index
        self.rotary = embedding
        """The layer's rotary embedding, where it is known."""
        self.tiled = tiled
        """Whether attention runs in tiles that fit a processor's cache; None until the device is known."""
        self.fused = fused
        """Whether attention goes through Triton's kernels where they serve."""
        self.scaling = 1.0
        """Attention logits are query . key times this; set by the attention function."""
        self.seen = 0
        """Columns fed, padding included."""
        self.fed: list[int] = []
        """Real tokens fed, per row."""
        self.ragged = False
        """Whether some head holds padding, in front of its tokens, while the layer is open."""
        self.held: Held | None = None
        """What the layer holds, while it is not open."""
        self.pending = False
        """Whether keys were handed on that attention has not yet read."""
        self.shared = False
        """Whether rows are still those of samples, each for all candidates: nothing is forgotten yet."""
        self.stays_open = False
        """Whether the next call follows at once, so that packing what is held end to end is not worth it."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, _ = key_states.shape
        known = 1 if self.shared else self.policy.rows
        if rows % known:
            raise ValueError(f"the policy has {known} rows (candidates), which do not divide a batch of {rows}")
        device = key_states.device
        if self.tiled is None:
            self.tiled = device.type == "cpu"
        if self.fused:
            fused.check(device)
        self.held = Held(
            keys=key_states.new_empty(rows, heads, 0, key_states.shape[3]),
            values=value_states.new_empty(rows, heads, 0, value_states.shape[3]),
            positions=torch.zeros(rows, heads, 0, dtype=torch.int32, device=device),
            state=self.policy.start(rows, heads, device, key_states.dtype),
        )
        self.summary = {}
        self.row = torch.arange(rows, device=device) // (rows // known)
        self.fed = [0] * rows
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Called by the model with new keys and values; hands them on, marked as belonging to this layer.

        The attention function finds the mark and does the rest: it must see every block before it is forgotten.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != len(self.fed):
            raise ValueError(f"this cache holds {len(self.fed)} rows, the input has {key_states.shape[0]}")
        if self.pending:
            raise ValueError(support.UNREAD)
        self.pending = True
        self.seen += key_states.shape[2]
        attention.mark(key_states, self)
        return key_states, value_states

    # What the attention function calls ---------------------------------------------------------------------

    def plan(self, tokens: int, real: Tensor | None) -> list[Block]:
        """Blocks of a forward call of `tokens` columns; real: (rows, tokens) bool, False for padding."""
        return plan(self.fed, tokens, real, self.policy.update_interval)

    def open(self, tokens: int) -> None:
        """Makes the layer's content dense, for one forward call of `tokens` columns."""
        self.keys, self.values, self.positions, self.state, self.ragged = self.held.dense()
        self.widths = self._widths()
        self._coming = tokens  # columns still to be appended, or fewer: rows that are cut apart have blank ones
        self._room, self._roomy = 0, {}  # columns behind keys, values, positions and these tensors of the state
        self._longest, self._unmeasured = None, self.keys.shape[2]
        self._since = 0
        self._moved = False

    def close(self) -> None:
        """Ends a forward call: stores what is held without the padding."""
        content = (self.keys, self.values, self.positions, self.state, self.ragged)
        if self.stays_open:
            self.held = Held(*content)  # with its room
        else:
            self.held = self.held.grown(*content, self._since) if not self._moved else Held.of(*content)
        self.keys = self.values = self.positions = self.state = None
        self._roomy, self._longest = {}, None

    def append(self, keys: Tensor, values: Tensor, block: Block) -> None:
        """Adds a block's keys and values, (rows, kv_heads, new, size), to what is held."""
        rows, heads, new, _ = keys.shape
        if self._room < new or keys.requires_grad:  # what a gradient needs is never written into
            self._make_room(max(new, min(self._coming, self.positions.shape[2])))
        self.keys, self.values = added(self.keys, 2, keys), added(self.values, 2, values)
        self.positions = added(self.positions, 2, block.positions(keys.device)[:, None])
        self.state = {name: self._blank(name, t, new) for name, t in self.state.items()}
        self._room -= new
        self._coming -= new
        self._unmeasured += new
        self.widths = [width + new for width in self.widths]
        self._since += new
        if not block.alike:
            self._pack(self.positions >= 0)  # blank tokens go in front

    def longest_keys(self) -> Tensor:
        """(rows * kv_heads,) length of the longest key that each head has held since `open`."""
        if self._unmeasured:
            new = self.keys[:, :, max(0, self.keys.shape[2] - self._unmeasured) :]  # some may be forgotten by now
            longest = longest_rows(new.flatten(0, 1))
            self._longest = longest if self._longest is None else torch.maximum(self._longest, longest)
            self._unmeasured = 0
        return self._longest

    def observe(self, weights: Tensor, block: Block) -> None:
        """Shows the policy a block's attention, (rows, kv_heads, new, keys)."""
        self.state = self.policy.observe(self.state, weights, block.fed, block.counts)

    def watch(self, block: Block, groups: int) -> Watch:
        """Who is shown a block's attention tile by tile; groups: query heads of a KV head."""
        if hasattr(self.policy, "watch"):
            return self.policy.watch(self.state, block.fed[0], block.new, groups)
        return Whole(self.policy, self.state, block, self.positions, groups)

    def summarise(self, query: Tensor, block: Block) -> None:
        """Shows the policy a block's queries, (rows, heads, new, size)."""
        self.summary = self.policy.summarise(self.summary, query, block.positions(query.device), self.rotary)

    def finish(self, block: Block, window: int | None) -> None:
        """Counts the block and, where a row's interval is full, forgets."""
        self.fed = [f + c for f, c in zip(block.fed, block.counts, strict=True)]
        self._window = window
        if any(block.due) and not self.shared:
            self._forget(block.due)

    def spread(self, candidates: int) -> None:
        """Ends sharing at the first update: the rows of all samples once for each candidate, which then forget."""
        self.shared = False
        self.batch_select_indices(torch.arange(len(self.fed)).repeat(candidates))
        self.row = torch.arange(len(self.fed), device=self.row.device) // (len(self.fed) // self.policy.rows)
        self.open(0)
        self._forget([True] * len(self.fed))
        self.close()

    def _forget(self, rows_due: list[bool]) -> None:
        device, window = self.positions.device, self._window
        newest = torch.tensor(self.fed, device=device) - 1
        due = torch.tensor(rows_due, device=device)
        if window is not None:  # no later query can see them: gone before scoring, and counted as forgotten
            outside = (self.positions <= newest[:, None, None] - window) & due[:, None, None]
            if bool(outside.any()):
                self._pack((self.positions >= 0) & ~outside)
        content = (self.positions, self.keys, self.values, newest, self.row, due, self.index, self.summary)
        known = self.widths if self.tiled or not self.ragged else None
        view = View(*content, self.rotary, self.scaling, known)
        keep = self.policy.keep(self.state, view) | (self.positions == newest[:, None, None])
        if not all(rows_due):
            keep |= ~due[:, None, None]
        if self.ragged:
            keep &= self.positions >= 0
        self._pack(keep)

    def _pack(self, keep: Tensor) -> None:
        room = max(0, min(self._coming, self.policy.update_interval))
        packing = Packing(keep, room)
        if packing.whole:
            self.ragged = False
            return
        self._moved = True
        self.ragged = packing.ragged
        self.keys, self.values = packing.rows(self.keys), packing.rows(self.values)
        self.positions = packing.positions(self.positions)
        self.state = {name: packing.columns(t) for name, t in self.state.items()}
        self._room, self._roomy = room, dict(self.state)
        self.widths = self._widths() if packing.counts is None else packing.counts

    def _make_room(self, room: int) -> None:
        self.keys, self.values = roomy(self.keys, 2, room), roomy(self.values, 2, room)
        self.positions = roomy(self.positions, 2, room)
        self.state = {name: roomy(t, 3, room) for name, t in self.state.items()}
        self._room, self._roomy = room, dict(self.state)

    def _blank(self, name: str, tensor: Tensor, new: int) -> Tensor:
        """A tensor of the state with `new` columns of zeros behind."""
        if self._roomy.get(name) is not tensor:  # the policy has made another
            return torch.nn.functional.pad(tensor, (0, new))
        longer = self._roomy[name] = lengthened(tensor, 3, new)
        longer[..., -new:] = 0
        return longer

    def _widths(self) -> list[int]:
        if self.ragged and self.tiled:  # on a GPU it would have to be waited for
            return (self.positions >= 0).sum(-1).flatten().tolist()
        return [self.positions.shape[2]] * self.positions.shape[:2].numel()

    # What transformers calls -------------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, self.seen

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.held = None
        self.is_initialized = False
        self.seen, self.fed, self.ragged, self.pending = 0, [], False, False

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(support.NO_WAY_BACK)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.fed)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Moves keys, values, positions, state, candidates and counters of the rows together."""
        if not self.is_initialized:
            return
        indices = indices.to(self.row.device)
        self.held = self.held.rows(indices)
        self.row = self.row[indices]
        self.summary = {name: t[indices] for name, t in self.summary.items()}
        self.fed = [self.fed[i] for i in indices.tolist()]


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
        config = model.config.get_text_config(decoder=True)
        support.check_model(model)
        super().__init__(
            layers=[
                MemoryLayer(policy, i, rotary.find(model, i), tiled, fused) for i in range(config.num_hidden_layers)
            ]
        )
        self.policy = policy
        self._model = model
        self._before: dict[str, str] | None = None
        self.attach()

    def attach(self) -> bool:
        """Sets the model's attention function, also again after `detach`; says whether it was not set before."""
        if self._before is not None:
            return False
        self._before = attention.attach(self._model)
        self._watch = support.watch(self._model, self)
        return True

    def detach(self) -> None:
        """Gives the model its former attention function back."""
        if self._before is not None:
            self._watch.remove()
            attention.restore(self._model, self._before)
            self._before = None

    def __enter__(self) -> MemoryCache:
        return self

    def __exit__(self, *_) -> None:
        self.detach()

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs):
        """See `Cache.update`; the layer before must have been read by now."""
        if layer_idx and self.layers[layer_idx - 1].pending:
            raise ValueError(support.UNREAD)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def activate_past_recording(self) -> None:
        """Called by assisted decoding before it begins: it would have to take tokens back."""
        raise ValueError(support.NO_WAY_BACK)

    def share(self) -> None:
        """The rows of a fresh cache stand for samples alone until `spread`: candidates differ once they forget.

        No more may be fed meanwhile than one update interval.
        """
        for layer in self.layers:
            layer.shared = True

    def spread(self, candidates: int) -> None:
        """After exactly one interval: each row becomes `candidates` rows, row = candidate * samples + sample."""
        for layer in self.layers:
            layer.spread(candidates)

    def keep_open(self, value: bool) -> None:
        """Whether another call follows at once: what is held stays padded until one after which none does."""
        for layer in self.layers:
            layer.stays_open = value

    @property
    def seen(self) -> int:
        """Columns fed, padding included."""
        return self.get_seq_length()

    @property
    def fed(self) -> list[int]:
        """Real tokens fed, per row."""
        return list(self.layers[0].fed)

    def kept_positions(self, layer: int) -> list[list[Tensor]]:
        """True positions that `layer` holds, ascending: [batch][kv_head] -> (kept,) int64."""
        held = self.layers[layer]
        if not held.is_initialized:
            return []
        return [[head[head >= 0] for head in row] for row in held.held.dense()[2]]

    def kept_counts(self) -> Tensor:
        """(layers, rows, kv_heads) int64, entries held."""
        return torch.stack([layer.held.counts.cpu() for layer in self.layers])

    def kept_fractions(self) -> list[list[float]]:
        """Per row and layer: entries held / tokens fed, mean over KV heads."""
        return (self.kept_counts().double().mean(-1) / torch.tensor(self.fed)).T.tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of the storage behind keys and values."""
        return sum(_nbytes(t) for layer in self.layers if layer.held for t in layer.held.main())

    @property
    def state_nbytes(self) -> int:
        """Bytes of everything else that is held: positions, counts and the policy's state."""
        held = [layer for layer in self.layers if layer.held]
        return sum(_nbytes(t) for layer in held for t in (*layer.held.beside(), layer.row, *layer.summary.values()))


def _nbytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() if tensor.numel() else 0
