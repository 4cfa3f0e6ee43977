"""The Neural Attention Memory Model: theta, statistics, scores and selection, saved and loaded.

One `theta` serves all layers and heads; with a (rows, N) theta every row of a batch has its own, so that a whole
population can be evaluated at once. Knows nothing of models, tasks or search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from namm_core import saving
from namm_core.allocation import Allotments
from namm_core.config import NammConfig
from namm_core.layer.packing import Packing
from namm_core.policy import BasePolicy
from namm_core.protocols import Attended, Entries, Held, State, View, Watch
from namm_core.protocols import Tokens as TokensSeen
from namm_core.rotary import Rotary
from namm_core.scoring import scorer
from namm_core.scoring.embedded import Embedded
from namm_core.scoring.embedding import PAPERS, Tokens, ages
from namm_core.scoring.feature_set import Features
from namm_core.scoring.pooling import pooled
from namm_core.scoring.spectrogram import Spectrogram
from namm_core.selection import Budget, reserved, top
from namm_core.statistics import FeatureStatistics


@dataclass
class NammState:
    """What `Namm.step` hands on to the next one: the kept tokens, packed to the right, padding in front."""

    positions: Tensor
    """(batch, kv_heads, kept) int64, ascending, padding -1."""
    tensors: State
    """The spectrogram's state of these tokens."""
    fed: int
    """Tokens fed so far, forgotten ones included."""


@dataclass
class NammStep:
    """One update of a memory; K are the cached tokens before it, in the caller's order of columns."""

    average: Tensor
    """(batch, kv_heads, K, frequencies), moving average of the spectrogram."""
    features: Tensor
    """The same, normalised by the statistics."""
    scores: Tensor
    """(batch, kv_heads, K), before the newest token is forced."""
    keep: Tensor
    """(batch, kv_heads, K) bool."""
    state: NammState
    """After the eviction."""


class Namm(BasePolicy):
    """A NAMM as a cache policy.

    config: its numbers; theta: (N,) or (rows, N), array or tensor, N = `num_parameters`; statistics: of the
    spectrogram features, or None to leave them as they are; budget: what is kept, where `config.selection` is budget
    (`namm_core.selection.Budget`). Raises ValueError when theta does not fit, or the budget.
    Source: arXiv 2410.13166, sections 3.1 to 3.3.
    """

    def __init__(
        self,
        config: NammConfig | None = None,
        theta: Tensor | np.ndarray | None = None,
        statistics: FeatureStatistics | None = None,
        budget: int | float | Tensor | None = None,
    ) -> None:
        self.config = config or NammConfig()
        self.num_parameters = scorer.num_parameters(self.config)
        if theta is None:
            theta = torch.zeros(self.num_parameters)
        theta = torch.as_tensor(theta, dtype=torch.float32)
        if theta.ndim not in (1, 2) or theta.shape[-1] != self.num_parameters:
            raise ValueError(
                f"theta has shape {tuple(theta.shape)}, this configuration needs ({self.num_parameters},) "
                f"or (rows, {self.num_parameters})"
            )
        self.theta = theta
        self.statistics = statistics
        self.update_interval = self.config.update_interval
        self._thetas = 1 if theta.ndim == 1 else theta.shape[0]
        self.takes_budget = self.config.selection == "budget"
        if budget is not None and not self.takes_budget:
            raise ValueError("this memory decides itself how much it keeps (selection is not budget): give no budget")
        self.budget = None if budget is None else Budget(budget)
        self.rows = self._thetas if self.budget is None else max(self._thetas, self.budget.rows)
        if self.budget is not None and not {self._thetas, self.budget.rows} <= {1, self.rows}:
            raise ValueError(f"theta has {self._thetas} rows, the budget {self.budget.rows}")
        self.features = Features(self.config)
        self.needs_attention, self.needs_queries = self.features.needs_attention, self.features.needs_queries
        # The kernel's hops are powers of two.
        self.advances = self.config.hop >= 16 and self.config.hop & (self.config.hop - 1) == 0
        self.scorer = scorer.find(self.config.scorer)
        self._spectrogram = Spectrogram(self.config)
        weights = scorer.unpack(self.config, theta if theta.ndim == 2 else theta[None])
        self._weights = {theta.device: weights}  # of each device that a layer of the model lives on
        self._prepared = {theta.device: self.scorer.prepare(weights)}
        self._ages: dict[torch.device, Tensor] = {}
        self._allotments = Allotments(self.config.sinks + self.config.recent + 1)

    # What a cache calls ------------------------------------------------------------------------------------

    def start(self, rows: int, heads: int, device: torch.device, dtype: torch.dtype) -> State:
        """The state of a spectrogram, (rows, kv_heads, n, 0) each, if any feature needs one. See `Policy.start`."""
        return self._spectrogram.start(rows, heads, device, dtype) if self.needs_attention else {}

    def observe(self, state: State, attention: Tensor, fed: list[int], counts: list[int]) -> State:
        """Advances the spectrogram by attention (rows, kv_heads, new, keys). See `Policy.observe`."""
        return self._spectrogram.observe(state, attention, fed, counts) if self.needs_attention else state

    def watch(self, state: State, positions: Tensor, fed: int, new: int, groups: int) -> Watch:
        """Advances the spectrogram tile by tile; writes into `state`. See `Policy.watch`."""
        return self._spectrogram.watch(state, fed, new, groups)

    def advance(self, state: State, attended: Attended, fed: int) -> State:
        """Advances the spectrogram by a kernel; writes into `state`. See `Policy.advance`."""
        return attended.spectrogram(state, self.config)

    def summarise(self, summary: State, queries: Tensor, positions: Tensor, rotary: Rotary | None) -> State:
        """What the features make of the queries so far. See `Policy.summarise`."""
        return self.features.summarise(summary, queries, positions, rotary)

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool. See `select`, `Policy.keep`; docs/memory.md 9."""
        if self.takes_budget and self.budget is None:
            raise ValueError("this memory keeps what a budget allows: Namm.from_pretrained(path, budget=0.2), say")
        return self.select(self.scores(state, view), view)

    def scores(self, state: State, view: Entries) -> Tensor:
        """(rows, kv_heads, keys) scores of all cached tokens, columns as in `view`, padding on the left."""
        prepared = self._at(self._prepared, view)
        scores = self.scorer.score_tokens(prepared, self._tokens(state, view), view.widths())
        return scores if self.config.pool == 1 else pooled(scores, view, self.config.pool)

    def embeddings(self, state: State, view: Entries) -> Tensor:
        """(rows, kv_heads, keys, features) of all cached tokens, in the order of `config.features`."""
        return self._tokens(state, view).embeddings()

    def select(self, scores: Tensor, view: Entries) -> Tensor:
        """(rows, kv_heads, keys) bool: score >= 0; in padded mode, with the newest, as many in every head; with a
        budget the highest ones, beside the first `sinks` and the newest `recent`.

        What is said of padding and of the newest token is ignored, as in `Policy.keep`.
        """
        config = self.config
        if config.selection == "ragged":
            return scores >= 0
        if self.budget is not None:
            tokens = self._allotted(view, self.budget.tokens(view))
            stays = reserved(view, tokens, config.sinks, config.recent)
            return top(scores.masked_fill(stays, torch.inf), view, tokens, config.over)
        newest = view.positions == view.newest[:, None, None]
        keep = ((scores >= 0) | newest) & (view.positions >= 0)
        return top(scores, view, keep.sum(-1).amax(-1))  # the most over the heads of one row, never over rows

    # One update outside a model ----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, attention: Tensor, positions: Tensor, state: NammState | None = None) -> NammStep:
        """One update from given attention.

        attention: (batch, kv_heads, new, K) already averaged over query groups; positions: (batch, kv_heads, K)
        true positions of the columns: what the last step kept, then the new tokens; padding (heads that hold
        fewer) is -1, wherever it stands, its columns zero. Raises ValueError when the columns do not continue
        `state`.
        """
        rows, heads, new, columns = attention.shape
        if positions.shape != (rows, heads, columns):
            raise ValueError(f"positions have shape {tuple(positions.shape)}, attention {tuple(attention.shape)}")
        if not self.needs_attention:
            raise ValueError("none of this memory's features is made of attention")
        if rows % self.rows:
            raise ValueError(f"theta has {self.rows} rows, which do not divide a batch of {rows}")
        order = positions.argsort(dim=-1, stable=True)  # padding in front, then ascending
        sorted_positions = positions.gather(-1, order)
        sorted_attention = attention.gather(-1, order[:, :, None].expand(attention.shape)).float()
        old = columns - new
        if state is None:
            tensors, fed = self.start(rows, heads, attention.device, torch.float32), 0
            tensors = {name: t.new_zeros(*t.shape[:3], old) for name, t in tensors.items()}
        else:
            fed = state.fed
            held = state.positions.shape[-1]
            if held > old:  # columns that are padding in every head may be left out
                tensors = {name: t[..., held - old :] for name, t in state.tensors.items()}
                before = state.positions[..., held - old :]
            else:
                tensors = {name: _blank_columns(t, old - held, front=True) for name, t in state.tensors.items()}
                before = torch.nn.functional.pad(state.positions, (old - held, 0), value=-1)
            if not torch.equal(before, sorted_positions[..., :old]):
                raise ValueError("positions do not continue the state: the old columns are not those that were kept")
        tensors = {name: _blank_columns(t, new) for name, t in tensors.items()}
        tensors = self.observe(tensors, sorted_attention, [fed] * rows, [new] * rows)
        view = Entries(
            positions=sorted_positions,
            newest=sorted_positions.amax(dim=(1, 2)),
            row=torch.arange(rows, device=attention.device) // (rows // self.rows),
        )
        scores = self.scores(tensors, view)
        keep = self.select(scores, view) | (sorted_positions == view.newest[:, None, None])
        keep &= sorted_positions >= 0
        back = order.argsort(dim=-1)
        average = (
            tensors["average"].transpose(2, 3).gather(2, back[..., None].expand(-1, -1, -1, self.config.frequencies))
        )
        packing = Packing(keep)
        after = NammState(
            packing.positions(sorted_positions),
            {name: packing.columns(t) for name, t in tensors.items()},
            fed + new,
        )
        return NammStep(
            average,
            average if self.statistics is None else self.statistics.normalise(average),
            scores.gather(-1, back),
            keep.gather(-1, back),
            after,
        )

    # Saving and loading ------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path, card: str | None = None) -> None:
        """Writes a folder in the layout of a Hub repository, each file whole or not at all.

        `config.json`, `model.safetensors`, the folder `custom_generate` (one NAMM, not a population) and, where a card
        is given, `README.md`. The folder is made when missing; files of other names in it stay as they are.
        """
        saving.write(Path(path), self.config, self.theta, self.statistics, card)

    @classmethod
    def from_pretrained(cls, path: str | Path, budget: int | float | Tensor | None = None) -> Namm:
        """Reads a folder, or a repository of the Hugging Face Hub, that `save_pretrained` wrote.

        budget: tokens (int) or a fraction of those seen (float), for a memory whose selection is budget. Raises
        ValueError, one line, when files are missing or damaged or theta does not fit its configuration.
        """
        config, theta, statistics = saving.read(path)
        try:
            return cls(config, theta, statistics, budget)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    # -------------------------------------------------------------------------------------------------------

    def _allotted(self, view: Entries, tokens: Tensor) -> Tensor:
        """(rows, heads) int64, what each head of the view's layer keeps where it is `tokens` (rows,) on average."""
        heads = view.positions.shape[1]
        if not self.config.depths or not isinstance(view, View):  # outside a model there is no depth
            return tokens[:, None].expand(-1, heads)
        return self._allotments.of(self.weights_at(view)[scorer.DEPTH], tokens, view)

    def _tokens(self, state: State, view: Entries) -> TokensSeen:
        device, longest = view.positions.device, max(view.newest.tolist()) + 1
        table = self._ages.get(device)
        if table is None or len(table) < longest:
            table = self._ages[device] = ages(2 * longest, self.config.age_dim, self.config.age_max_period).to(device)
        if self.config.features == PAPERS:
            return Tokens(state["average"], view.positions, view.newest, table, self.statistics)
        return Embedded(self.features.of(Held(view, state, table, self.config, self.statistics)), view.positions)

    def weights_at(self, view: Entries) -> dict[str, Tensor]:
        """The scorer's weights, on the view's device: one row, or one for each row of the view."""
        return self._at(self._weights, view)

    def _at(self, everywhere: dict[torch.device, dict[str, Tensor]], view: Entries) -> dict[str, Tensor]:
        device = view.positions.device
        if device not in everywhere:
            everywhere[device] = {name: w.to(device) for name, w in everywhere[self.theta.device].items()}
        weights = everywhere[device]
        if self._thetas == 1:
            return weights
        row = view.row
        if len(row) == self.rows and torch.equal(row, torch.arange(self.rows, device=device)):
            return weights
        return {name: w[row] for name, w in weights.items()}


class StatisticsCollector(Namm):
    """Keeps everything (theta = 0) and pools the features of every update of every layer (docs/memory.md 5)."""

    def __init__(self, config: NammConfig | None = None) -> None:
        super().__init__(config)
        self.needs_attention, self.needs_queries = True, False
        self.collected: FeatureStatistics | None = None

    def keep(self, state: State, view: View) -> Tensor:
        """(rows, kv_heads, keys) bool: every token; pools the features of the rows that are due."""
        valid = view.positions >= 0
        group = FeatureStatistics.of(state["average"].transpose(2, 3)[valid & view.due[:, None, None]])
        self.collected = group if self.collected is None else self.collected.merge(group)
        return valid


def _blank_columns(tensor: Tensor, count: int, front: bool = False) -> Tensor:
    return torch.nn.functional.pad(tensor, (count, 0) if front else (0, count))
