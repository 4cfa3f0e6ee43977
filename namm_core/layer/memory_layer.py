"""`MemoryLayer`: what one attention layer remembers, between forward calls and during them.

A forward call goes through it in this order: `update` (the model hands new keys and values over), `begin_read`, then
for each block `append`, attention by whoever reads (`namm_core.attention`), `observe` or `replace_state`, `summarise`
and `finish`, which forgets where an update is due; `end_read` at last. Between calls the content is stored without
padding (`namm_core.layer.stored`). Knows nothing of how attention is computed or how a policy decides.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from namm_core.layer.blocks import Block, plan
from namm_core.layer.content import Content
from namm_core.layer.stored import Dense, Stored
from namm_core.protocols import Attended, Policy, State, View, Watch
from namm_core.rotary import Rotary
from namm_core.support import NO_OFFLOAD, NO_WAY_BACK, UNREAD

_MARK = "_namm_layer"


class MemoryLayer(CacheLayerMixin):
    """One layer's memory. All that it is and holds is declared in `__init__`; only its own methods write to it.

    policy: what decides; index: of the layer, among `layers`; rotary: its rotary embedding, where that is known; tiled:
    whether attention runs in tiles that fit a processor's cache, None until the device is known; fused: whether
    attention goes through Triton's kernels where they serve.
    """

    is_sliding = False

    def __init__(
        self,
        policy: Policy,
        index: int,
        rotary: Rotary | None = None,
        tiled: bool | None = None,
        fused: bool = False,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.policy, self.index, self.rotary, self.tiled, self.fused = policy, index, rotary, tiled, fused
        self.layers = layers
        self.stored: Stored | None = None
        """The content between two forward calls; during one, what it was before; None before the first."""
        self._content: Content | None = None
        """The content during a forward call."""
        self.summary: State = {}
        """What the policy made of the queries so far, (rows, ...) each."""
        self.row = torch.zeros(0, dtype=torch.int64)
        """(rows,) int64, the policy's row (candidate, sample) that each row belongs to."""
        self.seen = 0
        """Columns fed, padding included."""
        self.fed: list[int] = []
        """Real tokens fed, per row."""
        self.scaling = 1.0
        """Attention logits are query . key times this; the reader says it."""
        self.window: int | None = None
        """Tokens that a query sees, itself included; the reader says it."""
        self.pending = False
        """Whether keys were handed over that attention has not yet read."""
        self.shared = False
        """Whether rows are still those of samples, each for all candidates: nothing is forgotten yet."""
        self.stays_open = False
        """Whether the next call follows at once, so that storing the content without padding is not worth it."""

    # What the model calls ----------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Starts an empty memory of the shape of these keys and values, (rows, kv_heads, new, size)."""
        rows, heads, _, _ = key_states.shape
        known = 1 if self.shared else self.policy.rows
        if rows % known:
            raise ValueError(f"the policy has {known} rows (candidates), which do not divide a batch of {rows}")
        device = key_states.device
        if self.tiled is None:
            self.tiled = device.type == "cpu"
        self.stored = Dense(
            keys=key_states.new_empty(rows, heads, 0, key_states.shape[3]),
            values=value_states.new_empty(rows, heads, 0, value_states.shape[3]),
            positions=torch.zeros(rows, heads, 0, dtype=torch.int32, device=device),
            state=self.policy.start(rows, heads, device, key_states.dtype),
            padded=False,
        )
        self.summary = {}
        self.row = torch.arange(rows, device=device) // (rows // known)
        self.fed = [0] * rows
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Takes new keys and values, (rows, kv_heads, new, size), and returns them, marked as this layer's.

        The attention function finds the mark and does the rest: it must see every block before it is forgotten.
        They are returned in the precision that the memory began with: inside `torch.autocast`, that one's. Raises
        ValueError for another number of rows, or when what came before was never read.
        """
        if self.stored is not None:
            dtype = self.stored.main()[0].dtype
            key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        elif torch.is_autocast_enabled(device := key_states.device.type):
            dtype = torch.get_autocast_dtype(device)
            key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != len(self.fed):
            raise ValueError(f"this cache holds {len(self.fed)} rows, the input has {key_states.shape[0]}")
        if self.pending:
            raise ValueError(UNREAD)
        self.pending = True
        self.seen += key_states.shape[2]
        setattr(key_states, _MARK, self)
        return key_states, value_states

    # What attention calls ----------------------------------------------------------------------------------

    @property
    def content(self) -> Content:
        """The content during a forward call, to read from."""
        assert self._content is not None, "the layer is read between begin_read and end_read"
        return self._content

    def begin_read(
        self, tokens: int, real: Tensor | None = None, scaling: float = 1.0, window: int | None = None
    ) -> list[Block]:
        """Opens the layer for a forward call of `tokens` columns, and cuts it into blocks.

        real: (rows, tokens) bool, False for padding, or None when there is none; scaling: of attention logits; window:
        tokens that a query sees, itself included. Raises ValueError when no keys were handed over since the last call.
        """
        if not self.pending:
            raise ValueError("a layer's keys were read twice: layers that share keys are not supported by this memory")
        self.pending = False
        self.scaling, self.window = scaling, window
        self._open(tokens)
        return plan(self.fed, tokens, real, self.policy.update_interval)

    def append(self, keys: Tensor, values: Tensor, block: Block) -> None:
        """Adds a block's keys and values, (rows, kv_heads, new, size), to the content."""
        self.content.append(keys, values, block)

    def observe(self, weights: Tensor, block: Block) -> None:
        """Shows the policy a block's attention, (rows, kv_heads, new, keys)."""
        self.replace_state(self.policy.observe(self.content.state, weights, block.fed, block.counts))

    def watch(self, block: Block, groups: int) -> Watch | None:
        """Who takes in a block's attention tile by tile, if the policy wants any; groups: query heads of a KV head.

        When all tiles are shown, `replace_state` takes the watch's state.
        """
        if not self.policy.needs_attention:
            return None
        held = self.content
        return self.policy.watch(held.state, held.positions, block.fed[0], block.new, groups)

    def advance(self, attended: Attended, block: Block) -> None:
        """Has the policy take in a block's attention that a kernel did not write out."""
        self.replace_state(self.policy.advance(self.content.state, attended, block.fed[0]))

    def replace_state(self, state: State) -> None:
        """Takes over what the policy has made of its state, (rows, kv_heads, n, keys) each."""
        self.content.replace_state(state)

    def summarise(self, query: Tensor, block: Block) -> None:
        """Shows the policy a block's queries, (rows, heads, new, size), if it wants any."""
        if self.policy.needs_queries:
            positions = block.positions(query.device)
            self.summary = self.policy.summarise(self.summary, query, positions, self.rotary)

    def finish(self, block: Block) -> None:
        """Counts the block and, where a row's interval is full, forgets."""
        self.fed = [f + c for f, c in zip(block.fed, block.counts, strict=True)]
        if any(block.due) and not self.shared:
            self._forget(block.due)

    def end_read(self) -> None:
        """Closes the layer: stores its content."""
        assert self.stored is not None
        self.stored = self.content.stored(self.stored, self.stays_open)
        self._content = None

    # What the cache calls ----------------------------------------------------------------------------------

    def share(self) -> None:
        """Rows stand for samples alone until `spread`."""
        self.shared = True

    def spread(self, candidates: int) -> None:
        """Ends sharing at the first update: the rows of all samples once for each candidate, which then forget."""
        self.shared = False
        self.batch_select_indices(torch.arange(len(self.fed)).repeat(candidates))
        self.row = torch.arange(len(self.fed), device=self.row.device) // (len(self.fed) // self.policy.rows)
        self._open(0)
        self._forget([True] * len(self.fed))
        self.end_read()

    def forked(self) -> MemoryLayer:
        """The same content, to go on differently: it is shared, since tensors that are stored are never written into.

        Raises ValueError in the middle of a call.
        """
        if self.pending or self._content is not None:
            raise ValueError(UNREAD)
        return copy.copy(self)

    def restore(self, stored: Stored, summary: State, row: Tensor, seen: int, fed: list[int]) -> None:
        """Takes over content that was stored elsewhere; see the fields.

        Raises ValueError where the policy's state, or the number of rows, is another.
        """
        assert self.stored is not None, "the layer has been started"
        if stored.dense().state.keys() != self.stored.dense().state.keys() or len(fed) != len(self.fed):
            raise ValueError("the memory was stored with another policy's state, or other rows")
        self.stored, self.summary, self.row, self.seen, self.fed = stored, summary, row, seen, list(fed)

    def copied(self) -> MemoryLayer:
        """As `forked`, in tensors that nobody else holds."""
        twin = self.forked()
        if twin.stored is not None:
            twin.stored = twin.stored.copied()
        twin.row, twin.summary = twin.row.clone(), {name: t.clone() for name, t in twin.summary.items()}
        return twin

    def keep_open(self, value: bool) -> None:
        """Whether the content stays padded at the end of a call."""
        self.stays_open = value

    def _open(self, tokens: int) -> None:
        assert self.stored is not None
        self._content = Content.of(self.stored, tokens, self.policy.update_interval, counted=bool(self.tiled))

    def _forget(self, rows_due: list[bool]) -> None:
        held, window = self.content, self.window
        device = held.positions.device
        newest = torch.tensor(self.fed, device=device) - 1
        due = torch.tensor(rows_due, device=device)
        if window is not None:  # no later query can see them: gone before scoring, and counted as forgotten
            outside = (held.positions <= newest[:, None, None] - window) & due[:, None, None]
            if bool(outside.any()):
                held.keep((held.positions >= 0) & ~outside)
        view = View(
            positions=held.positions,
            keys=held.keys,
            values=held.values,
            newest=newest,
            row=self.row,
            due=due,
            layer=self.index,
            layers=self.layers,
            summary=self.summary,
            rotary=self.rotary,
            scaling=self.scaling,
            counts=held.widths if held.counted or not held.padded else None,
        )
        keep = self.policy.keep(held.state, view) | (held.positions == newest[:, None, None])
        if not all(rows_due):
            keep |= ~due[:, None, None]
        if held.padded:
            keep &= held.positions >= 0
        held.keep(keep)

    # What transformers calls -------------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        """Columns fed, padding included."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask: it covers the new tokens alone, since heads hold different ones."""
        return query_length, self.seen

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """The same, as transformers before 5.20 calls it, which kvpress asks for (`workers.namm_press`)."""
        return -1

    def offload(self) -> None:
        """Raises ValueError: a memory is read in every call."""
        raise ValueError(NO_OFFLOAD)

    def prefetch(self) -> None:
        """Raises ValueError, as `offload`."""
        raise ValueError(NO_OFFLOAD)

    def reset(self) -> None:
        """Forgets everything, as before the first call."""
        self.stored, self._content = None, None
        self.is_initialized = False
        self.seen, self.fed, self.pending, self.summary = 0, [], False, {}
        self.row = torch.zeros(0, dtype=torch.int64)
        self.shared, self.stays_open = False, False

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError: what was forgotten cannot be taken back."""
        raise ValueError(NO_WAY_BACK)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Moves rows as beam search wants them; beam_idx: (rows,) int64."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times in a row."""
        self.batch_select_indices(torch.arange(len(self.fed)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Moves content, policy rows, summary and counters together; indices: (n,) int64, or (rows,) bool."""
        if self.stored is None:
            return
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        indices = indices.to(self.row.device)
        self.stored = self.stored.rows(indices)
        self.row = self.row[indices]
        self.summary = {name: t[indices] for name, t in self.summary.items()}
        self.fed = [self.fed[i] for i in indices.tolist()]


def marked(keys: Tensor) -> MemoryLayer | None:
    """The layer whose `update` returned these keys; attention functions are not handed the cache."""
    return getattr(keys, _MARK, None)
