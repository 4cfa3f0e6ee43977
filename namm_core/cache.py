"""`MemoryCache`: the transformers cache that really frees what a policy forgets.

    cache = MemoryCache(model, namm)
    model.generate(input_ids, past_key_values=cache)

Each layer holds its kept keys and values packed to the right, true positions beside them, and the policy's state
of the same tokens. Forgetting happens inside attention (`namm_core.attention`), layer by layer. Knows nothing of
how a policy decides.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from namm_core import attention
from namm_core.blocks import Block, plan
from namm_core.packing import gather_keys, packing
from namm_core.policies.base import Policy, View


class MemoryLayer(CacheLayerMixin):
    """What one attention layer remembers."""

    is_sliding = False

    def __init__(self, policy: Policy, index: int) -> None:
        super().__init__()
        self.policy = policy
        self.index = index
        self.seen = 0
        """Columns fed, padding included."""
        self.fed: list[int] = []
        """Real tokens fed, per row."""
        self.ragged = False
        """Whether some head holds padding, in front of its tokens."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, _ = key_states.shape
        known = self.policy.rows
        if rows % known:
            raise ValueError(f"the policy has {known} rows (candidates), which do not divide a batch of {rows}")
        device = key_states.device
        self.keys = key_states[:, :, :0]
        self.values = value_states[:, :, :0]
        self.positions = torch.zeros(rows, heads, 0, dtype=torch.int64, device=device)
        self.state = self.policy.start(rows, heads, device, key_states.dtype)
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
        self.seen += key_states.shape[2]
        attention.mark(key_states, self)
        return key_states, value_states

    # What the attention function calls ---------------------------------------------------------------------

    def plan(self, tokens: int, real: Tensor | None) -> list[Block]:
        """Blocks of a forward call of `tokens` columns; real: (rows, tokens) bool, False for padding."""
        return plan(self.fed, tokens, real, self.policy.update_interval)

    def append(self, keys: Tensor, values: Tensor, block: Block) -> None:
        """Adds a block's keys and values, (rows, kv_heads, new, size), to what is held."""
        rows, heads, new, _ = keys.shape
        positions = block.positions(keys.device)[:, None].expand(rows, heads, new)
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)
        self.positions = torch.cat([self.positions, positions], dim=2)
        self.state = {name: torch.nn.functional.pad(t, (0, new)) for name, t in self.state.items()}
        if not block.alike:
            self._pack(self.positions >= 0)  # blank tokens go in front

    def observe(self, weights: Tensor, block: Block) -> None:
        """Shows the policy a block's attention, (rows, kv_heads, new, keys)."""
        self.state = self.policy.observe(self.state, weights, block.fed, block.counts)

    def summarise(self, query: Tensor, block: Block) -> None:
        """Shows the policy a block's queries, (rows, heads, new, size)."""
        self.summary = self.policy.summarise(self.summary, query, block.positions(query.device))

    def finish(self, block: Block, window: int | None) -> None:
        """Counts the block and, where a row's interval is full, forgets."""
        self.fed = [f + c for f, c in zip(block.fed, block.counts, strict=True)]
        if not any(block.due):
            return
        device = self.positions.device
        newest = torch.tensor(self.fed, device=device) - 1
        due = torch.tensor(block.due, device=device)
        if window is not None:  # no later query can see them: gone before scoring, and counted as forgotten
            outside = (self.positions <= newest[:, None, None] - window) & due[:, None, None]
            if bool(outside.any()):
                self._pack((self.positions >= 0) & ~outside)
        view = View(self.positions, self.keys, self.values, newest, self.row, due, self.index, self.summary)
        keep = self.policy.keep(self.state, view)
        keep = keep | (self.positions == newest[:, None, None]) | ~due[:, None, None]
        self._pack(keep & (self.positions >= 0))

    def _pack(self, keep: Tensor) -> None:
        if bool(keep.all()):
            self.ragged = False
            return
        index, kept = packing(keep)
        self.ragged = not bool(kept.all())
        wide = index[..., None]
        self.keys = self.keys.gather(2, wide.expand(-1, -1, -1, self.keys.shape[3]))
        self.values = self.values.gather(2, wide.expand(-1, -1, -1, self.values.shape[3]))
        self.positions = self.positions.gather(2, index).masked_fill_(~kept, -1)
        self.state = {name: gather_keys(t, index, kept) for name, t in self.state.items()}

    # What transformers calls -------------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, self.seen

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.seen, self.fed, self.ragged = 0, [], False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.fed)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Moves keys, values, positions, state, candidates and counters of the rows together."""
        if not self.is_initialized:
            return
        indices = indices.to(self.positions.device)
        self.keys, self.values = self.keys[indices], self.values[indices]
        self.positions, self.row = self.positions[indices], self.row[indices]
        self.state = {name: t[indices] for name, t in self.state.items()}
        self.summary = {name: t[indices] for name, t in self.summary.items()}
        self.fed = [self.fed[i] for i in indices.tolist()]


class MemoryCache(Cache):
    """A key-value cache whose content a policy decides.

    model: any transformers model whose attention goes through `AttentionInterface`; its attention function is set
    here, and set back by `detach` (or at the end of a `with` block). policy: a `Namm` or any other `Policy`.
    Raises ValueError for models that cannot exchange their attention function.
    """

    def __init__(self, model: PreTrainedModel, policy: Policy) -> None:
        config = model.config.get_text_config(decoder=True)
        super().__init__(layers=[MemoryLayer(policy, i) for i in range(config.num_hidden_layers)])
        self.policy = policy
        self._model = model
        self._before: dict[str, str] | None = None
        self.attach()

    def attach(self) -> bool:
        """Sets the model's attention function, also again after `detach`; says whether it was not set before."""
        if self._before is not None:
            return False
        self._before = attention.attach(self._model)
        return True

    def detach(self) -> None:
        """Gives the model its former attention function back."""
        if self._before is not None:
            attention.restore(self._model, self._before)
            self._before = None

    def __enter__(self) -> MemoryCache:
        return self

    def __exit__(self, *_) -> None:
        self.detach()

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
        return [[head[head >= 0] for head in row] for row in held.positions]

    def kept_counts(self) -> Tensor:
        """(layers, rows, kv_heads) int64, entries held."""
        return torch.stack([(layer.positions >= 0).sum(-1).cpu() for layer in self.layers])

    @property
    def nbytes(self) -> int:
        """Bytes of the storage behind keys and values."""
        return sum(_nbytes(t) for layer in self.layers if layer.is_initialized for t in (layer.keys, layer.values))

    @property
    def state_nbytes(self) -> int:
        """Bytes of everything else that is held: positions and the policy's state."""
        held = [layer for layer in self.layers if layer.is_initialized]
        return sum(
            _nbytes(t)
            for layer in held
            for t in (layer.positions, layer.row, *layer.state.values(), *layer.summary.values())
        )


def _nbytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() if tensor.numel() else 0
