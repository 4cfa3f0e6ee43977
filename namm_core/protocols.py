"""The interfaces of this floor: what a policy, a watch, a feature and a scorer are, and what they are shown.

Whoever writes one of them implements the members listed here, all of them; `namm_core.policy` and
`namm_core.scoring.base_scorer` have base classes with a default for everything that most do not need. Knows no
policy, no scorer and no cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from namm_core.config import NammConfig
from namm_core.rotary import Rotary
from namm_core.statistics import FeatureStatistics
from namm_core.text_read import TextRead

State = dict[str, Tensor]
"""What a policy remembers of a layer: named tensors."""


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The cache entries of one layer: which tokens of the text they are."""

    positions: Tensor
    """(rows, kv_heads, keys) int64, true positions ascending; padding is -1 and stands in front."""
    newest: Tensor
    """(rows,) int64, position of the newest token."""
    row: Tensor
    """(rows,) int64, which row of the policy (candidate, sample) each row of the cache belongs to."""
    counts: list[int] | None = None
    """Tokens of each head, rows end to end, where they are known."""

    def widths(self) -> list[int]:
        """Tokens of each head, rows end to end; all columns where counting them would mean waiting for a device."""
        if self.counts is not None:
            return self.counts
        if self.positions.device.type == "cpu":
            columns = self.positions.shape[-1]
            return [columns - int(head.searchsorted(0)) for head in self.positions.flatten(0, 1).numpy()]
        return [self.positions.shape[-1]] * self.positions.shape[:2].numel()


@dataclass(frozen=True, kw_only=True)
class View(Entries):
    """What a policy may look at when a layer's memory is updated."""

    keys: Tensor
    """(rows, kv_heads, keys, head size), after rotary embedding."""
    values: Tensor
    """(rows, kv_heads, keys, head size)"""
    due: Tensor
    """(rows,) bool, rows that are being updated; what is decided for the others is ignored."""
    layer: int
    """Index of the layer."""
    layers: int = 1
    """How many layers the memory has."""
    summary: State = field(default_factory=dict)
    """What `summarise` made of the queries so far, (rows, ...) each; empty where it is not asked for."""
    rotary: Rotary | None = None
    """The layer's rotary embedding; None where there is none that is known (`namm_core.rotary`)."""
    scaling: float = 1.0
    """Attention logits are query . key times this."""


@dataclass(frozen=True)
class Held:
    """What features are made of: the tokens that a layer holds, columns ascending by position, padding in front."""

    view: Entries
    """In a model a `View`; where only attention is given (`Namm.step`), no more than `Entries`."""
    state: State
    """What the memory remembers of these tokens."""
    ages: Tensor
    """(longer than any position, age_dim), sines and cosines of ages."""
    config: NammConfig
    statistics: FeatureStatistics | None

    @property
    def age(self) -> Tensor:
        """(rows, kv_heads, keys) int64, tokens fed since each, 0 for the newest, and for padding."""
        age = (self.view.newest[:, None, None] - self.view.positions).clamp(min=0)
        return age.masked_fill(self.view.positions < 0, 0)

    @property
    def average(self) -> Tensor:
        """(rows, kv_heads, frequencies, keys), moving average of the spectrogram."""
        return self.state["average"]

    @property
    def seen(self) -> View:
        """The view with its keys and values. Raises ValueError where only attention was given."""
        if not isinstance(self.view, View):
            raise ValueError(
                f"only attention was given: of this memory's features ({', '.join(self.config.features)}) some need "
                "keys and values, which a MemoryCache shows"
            )
        return self.view

    @property
    def keys(self) -> Tensor:
        """(rows, kv_heads, keys, head size), after rotary embedding."""
        return self.seen.keys

    @property
    def values(self) -> Tensor:
        """(rows, kv_heads, keys, head size)."""
        return self.seen.values


class Feature(Protocol):
    """Some numbers that a scorer sees of each cached token. Its file imports torch in methods alone, as a scorer's."""

    needs_attention: bool
    """Whether it is made of the spectrogram."""
    needs_queries: bool
    """Whether `summarise` must be called."""
    rules: dict[str, float]
    """Policies whose order is that of the feature's first number, times this sign."""

    def width(self, config: NammConfig) -> int:
        """How many numbers."""
        ...

    def of(self, held: Held) -> Tensor:
        """(rows, kv_heads, keys, width); what padding gets means nothing, but must be finite."""
        ...

    def summarise(
        self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None, config: NammConfig
    ) -> State:
        """Takes in the queries of one block. See `Policy.summarise`; features share one summary."""
        ...


class Watch(Protocol):
    """Takes in the attention of one block of queries tile by tile, the heads of all rows end to end."""

    def begin(self, heads: slice, first: int) -> None:
        """Tiles of these heads follow, from the block's first query to its last; keys before `first` hold nothing."""
        ...

    def show(self, weights: Tensor, scale: Tensor | None) -> None:
        """The next queries' attention (heads, groups, queries, keys), float32; keys from `first` to the last query.

        It still has to be multiplied by `scale` (heads, groups, queries), if given. The watch may overwrite both.
        """
        ...

    def end(self) -> None:
        """No more tiles of these heads follow."""
        ...

    def state(self) -> State:
        """The state after the block."""
        ...


class Attended(Protocol):
    """A block's attention that a kernel computed and did not write out (`namm_core.attention.fused`)."""

    def spectrogram(self, state: State, config: NammConfig) -> State:
        """The state of a spectrogram, the block's own keys included, advanced by the block; writes into `state`."""
        ...


class Policy(Protocol):
    """Decides, layer by layer and head by head, which cached tokens stay.

    A policy holds its configuration, never the state of a sequence: the cache carries that, and moves it when it
    forgets, repeats or reorders. What belongs to cached keys (`start`, `observe`) is (rows, kv_heads, size, keys);
    what belongs to a row as a whole (`summarise`) is (rows, ...).
    """

    takes_budget: bool
    """Whether the constructor takes a `budget`, what a head keeps at each update; others decide that themselves."""
    update_interval: int
    """Tokens fed to a row between two updates of its memory."""
    needs_attention: bool
    """Whether the policy must see attention (`observe`, `watch`); without it, attention may run in fused kernels."""
    needs_queries: bool
    """Whether `summarise` must be called."""
    advances: bool
    """Whether `advance` can take the place of `observe` and `watch`."""
    rows: int
    """Rows that the policy tells apart (1: the same for all)."""

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """State of a memory that has seen nothing: (rows, kv_heads, size, 0) each, keys being the last axis.

        dtype: of the cached keys. What is held for each key may be held in half precision where the keys are.
        """
        ...

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """Takes in the attention (rows, kv_heads, new, keys) of one block of queries; returns the new state.

        attention: mean over each query group, float32, zero where a query came before a key; state: with the block's
        own keys, zeros; fed: tokens of each row before the block; counts: tokens of each row in it, right-aligned.
        """
        ...

    def watch(self, state: State, positions: Tensor, fed: int, new: int, groups: int) -> Watch:
        """Who takes in a block of `new` queries, the same in all rows, while its tiles are in the processor's cache.

        state: as in `observe`; the watch may write into it. positions: (rows, kv_heads, keys); fed: tokens of every
        row before the block; groups: query heads of a KV head.
        """
        ...

    def advance(self, state: State, attended: Attended, fed: int) -> State:
        """Does the same where a kernel leaves no tile of attention, if `advances`; fed: as in `watch`."""
        ...

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        """Takes in the queries of one block, if `needs_queries`; returns the new summary, (rows, ...) tensors.

        summary: {} at first; queries: (rows, heads, new, head size), after rotary embedding; positions: (rows, new),
        -1 for blank ones; rotary: as in `View`.
        """
        ...

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool, True for what stays; what is said of padding and the newest token is ignored."""
        ...


class Tokens(Protocol):
    """All cached tokens of a layer, as a scorer sees them; columns ascend by position, padding (-1) in front."""

    @property
    def positions(self) -> Tensor:
        """(rows, kv_heads, columns) int64"""
        ...

    @property
    def loops(self) -> bool:
        """Whether `write` serves: loops are compiled, and the tensors are where they can reach them."""
        ...

    def embeddings(self) -> Tensor:
        """(rows, kv_heads, columns, features), by tensor operations."""
        ...

    def write(self, heads: np.ndarray, widths: np.ndarray, out: Tensor) -> np.ndarray:
        """Embeddings of some heads, and a one behind each, into out (heads, tokens, size), newest token first.

        heads: (n,) int64, indices into the heads of all rows, end to end; widths: (n,) int64, their tokens; out: zeros.
        Returns (2, n, size): the least and the most of each number over a head's tokens.
        """
        ...


class Scorer(Protocol):
    """The network that turns the embedding of a cached token into its score.

    weights: the parts of `theta` by name, (rows, *shape) each: one row for all, or one for each row that is scored.
    """

    readout: str
    """The part of `theta` by which the score is a weighted sum of the features where all else is 0."""

    def layout(self, config: NammConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parts of `theta`, in order; the last number is the bias of the score.

        Is asked where torch may not be imported: a file that imports torch inside its methods keeps `namm --dry-run`
        fast.
        """
        ...

    def prepare(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `score` and `score_tokens` need of the weights, computed once for many calls."""
        ...

    def score(self, prepared: dict[str, Tensor], embeddings: Tensor, widths: list[int] | None = None) -> Tensor:
        """Scores (rows, kv_heads, tokens) of embeddings (rows, kv_heads, tokens, features), newest token first.

        widths: tokens of each head, rows end to end (None: all); the rest is padding, whose scores mean nothing.
        """
        ...

    def score_tokens(self, prepared: dict[str, Tensor], tokens: Tokens, widths: list[int]) -> Tensor:
        """Scores (rows, kv_heads, columns) of a layer's tokens, columns as there, padding's without meaning."""
        ...

    def derivatives(self, weights: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        """Derivative of each score by its token's own embedding, all other embeddings held fixed.

        weights: with one row; embeddings and result: (rows, kv_heads, tokens, features), newest token first.
        """
        ...


class Fed(Protocol):
    """A cache, as far as the checks of a call (`namm_core.support`) ask it."""

    @property
    def seen(self) -> int:
        """Columns fed, padding included."""
        ...

    @property
    def fed(self) -> list[int]:
        """Real tokens fed, per row."""
        ...

    @property
    def text(self) -> TextRead:
        """Which tokens these were."""
        ...
