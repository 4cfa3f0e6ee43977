"""The fast code against the oracle on drawn shapes, and what must hold whatever the numbers are.

Drawn: batch, KV heads, new tokens, parameters (one set or one a row), statistics, selection, where padding
stands, and several consecutive updates, each on what the last one kept.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from namm_core import FeatureStatistics, Namm, NammConfig
from namm_core.scoring.spectrogram import Spectrogram
from tests.namm_core.reference import HOP, NUM_PARAMETERS, Reference, Statistics, moving_average, select, spectrogram

PADDING = ["front", "behind the old", "scattered"]
slow_oracle = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Scenario:
    """One drawn memory: numbers come from `rng`, so that a failing example is a few small integers."""

    rows: int
    heads: int
    new: int
    updates: int
    selection: str
    shared_theta: bool
    with_statistics: bool
    padding: str
    spare: int  # columns that are padding in every head
    gap: int  # positions left out between two updates: old tokens of great age
    apart: int  # how much further in its text each row is than the one before
    seed: int

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.theta = self.rng.normal(0, 0.3, (1 if self.shared_theta else self.rows, NUM_PARAMETERS))
        self.theta = self.theta.astype(np.float32)
        self.statistics = None
        if self.with_statistics:
            mean = self.rng.gamma(1.0, 0.05, 17).astype(np.float32)
            var = self.rng.gamma(2.0, 0.01, 17).astype(np.float32)
            self.statistics = Statistics(mean.astype(np.float64), var.astype(np.float64), 1000)

    def namm(self, row=None) -> Namm:
        """The fast code with all rows' parameters, or with one row's."""
        theta = self.theta[0] if self.shared_theta else self.theta if row is None else self.theta[row]
        namm = Namm(NammConfig(update_interval=self.new, selection=self.selection), theta)
        if self.statistics:
            namm.statistics = FeatureStatistics(self.statistics.mean, self.statistics.var, self.statistics.count)
        return namm

    def reference(self, row) -> Reference:
        theta = self.theta[0 if self.shared_theta else row]
        return Reference(theta.astype(np.float64), self.selection, self.statistics)

    def attention(self, held: int) -> np.ndarray:
        """Causal attention (new, held + new) of one KV head; some keys are sinks."""
        logits = self.rng.normal(0, 1, (self.new, held + self.new)) + self.rng.normal(0, 2, held + self.new)
        logits[:, held:][np.triu_indices(self.new, 1)] = -np.inf
        weights = np.exp(logits - logits.max(1, keepdims=True))
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)

    def block(self, update, held):
        """[row][head] of (attention, positions), given the positions that each head holds."""
        new = np.arange(self.new) + update * (self.new + self.gap)
        return [
            [(self.attention(len(old)), np.concatenate([old, new + r * self.apart])) for old in row]
            for r, row in enumerate(held)
        ]

    def columns(self, held) -> list[list[np.ndarray]]:
        """[row][head] where the columns of each head's tokens go among those of the widest head."""
        width = max(len(old) for row in held for old in row) + self.spare
        out = []
        for row in held:
            out.append([])
            for old in row:
                slots = np.arange(width)
                if self.padding == "front":
                    slots = slots[width - len(old) :]
                elif self.padding == "behind the old":
                    slots = slots[: len(old)]
                else:
                    slots = np.sort(self.rng.choice(width, len(old), replace=False))
                out[-1].append(np.concatenate([slots, width + np.arange(self.new)]))
        return out

    def pack(self, block, columns):
        """Tensors (rows, heads, new, K) and (rows, heads, K): one call of `step` for all rows."""
        width = columns[0][0].max() + 1
        attention = torch.zeros(self.rows, self.heads, self.new, width)
        positions = torch.full((self.rows, self.heads, width), -1)
        for r in range(self.rows):
            for h in range(self.heads):
                a, p = block[r][h]
                attention[r, h][:, columns[r][h]] = torch.tensor(a)
                positions[r, h, columns[r][h]] = torch.tensor(p)
        return attention, positions


scenarios = st.builds(
    Scenario,
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    new=st.sampled_from([16, 32, 48]),
    updates=st.integers(1, 3),
    selection=st.sampled_from(["padded", "ragged"]),
    shared_theta=st.booleans(),
    with_statistics=st.booleans(),
    padding=st.sampled_from(PADDING),
    spare=st.integers(0, 2),
    gap=st.sampled_from([0, 0, 7, 20_000]),
    apart=st.sampled_from([0, 100]),
    seed=st.integers(0, 2**32 - 1),
)


def assert_close(actual, expected, tolerance, what):
    worst = np.abs(np.asarray(actual) - np.asarray(expected)).max()
    assert worst <= tolerance, f"{what}: largest difference {worst:.2e}, allowed {tolerance:.1e}"


def tolerance_of(scores) -> float:
    """float32 against float64: the error grows with the scores."""
    return 3e-5 * (1 + max(np.abs(s).max() for s in scores))


@slow_oracle
@given(scenarios)
def test_any_batch_agrees_with_the_oracle(scenario):
    namm, state = scenario.namm(), None
    oracles = [scenario.reference(row) for row in range(scenario.rows)]
    held = [[np.empty(0, dtype=int)] * scenario.heads] * scenario.rows
    for update in range(scenario.updates):
        block, columns = scenario.block(update, held), scenario.columns(held)
        attention, positions = scenario.pack(block, columns)
        step = namm.step(attention, positions, state)
        state, held = step.state, []
        assert not step.keep[positions < 0].any(), "padding is never kept"
        near_tie = False
        for r, oracle in enumerate(oracles):
            expected, margin = oracle.update([(a.astype(np.float64), p) for a, p in block[r]])
            allowed = tolerance_of([e.scores for e in expected])
            for h, e in enumerate(expected):
                at = torch.tensor(columns[r][h])
                deviation = 1 if not scenario.statistics else np.sqrt(scenario.statistics.var).min()
                assert_close(step.average[r, h, at], e.average, 2e-6, "averages")
                assert_close(step.features[r, h, at], e.features, 2e-6 / deviation, "features")
                assert_close(step.scores[r, h, at], e.scores, allowed, "scores")
            if margin <= 2 * allowed:
                near_tie = True
                continue
            for h, e in enumerate(expected):
                kept = step.keep[r, h, torch.tensor(columns[r][h])]
                assert kept.tolist() == e.keep.tolist(), f"row {r}, head {h}"
            held.append([p[e.keep] for (_, p), e in zip(block[r], expected, strict=True)])
        if near_tie:  # float32 may decide either way there, and what follows is another history
            return


@slow_oracle
@given(scenarios)
def test_a_row_of_a_batch_equals_the_row_alone(scenario):
    together = scenario.namm()
    alone = [scenario.namm(row) for row in range(scenario.rows)]
    state, states = None, [None] * scenario.rows
    held = [[np.empty(0, dtype=int)] * scenario.heads] * scenario.rows
    for update in range(scenario.updates):
        block, columns = scenario.block(update, held), scenario.columns(held)
        step = together.step(*scenario.pack(block, columns), state)
        state, held = step.state, []
        for r in range(scenario.rows):
            one = Scenario(**{f: getattr(scenario, f) for f in scenario.__dataclass_fields__} | {"rows": 1})
            own = [[np.empty(0, dtype=int) if update == 0 else p[: -scenario.new] for _, p in block[r]]]
            where = one.columns(own)
            single = alone[r].step(*one.pack([block[r]], where), states[r])
            states[r] = single.state
            scores = [single.scores[0, h, torch.tensor(where[0][h])] for h in range(scenario.heads)]
            allowed = tolerance_of([s.numpy() for s in scores])
            _, margin = select([s.double().numpy() for s in scores], [-1] * scenario.heads, scenario.selection)
            if margin <= 2 * allowed:
                return
            held.append([])
            for h in range(scenario.heads):
                at = torch.tensor(columns[r][h])
                assert_close(step.scores[r, h, at], scores[h], allowed, "scores")
                keep = step.keep[r, h, at]
                assert torch.equal(keep, single.keep[0, h, torch.tensor(where[0][h])]), f"row {r}, head {h}"
                held[-1].append(block[r][h][1][keep.numpy()])


@slow_oracle
@given(scenarios)
def test_keep_is_the_selection_rule_on_its_own_scores(scenario):
    namm = scenario.namm()
    held = [[np.empty(0, dtype=int)] * scenario.heads] * scenario.rows
    columns = scenario.columns(held)
    step = namm.step(*scenario.pack(scenario.block(0, held), columns))
    for r in range(scenario.rows):
        at = [torch.tensor(columns[r][h]) for h in range(scenario.heads)]
        scores = [step.scores[r, h, at[h]].double().numpy() for h in range(scenario.heads)]
        keep, _ = select(scores, [-1] * scenario.heads, scenario.selection)
        for h in range(scenario.heads):
            assert step.keep[r, h, at[h]].tolist() == keep[h].tolist()


@pytest.mark.parametrize("greedy_first", [True, False])
def test_padded_fills_heads_within_a_sample_only(greedy_first):
    """A sample that keeps all does not make its batch-mate, which keeps its newest only, keep more."""
    theta = np.zeros((2, NUM_PARAMETERS), dtype=np.float32)
    theta[:, -1] = [1, -1] if greedy_first else [-1, 1]  # b3
    attention = torch.ones(2, 2, 16, 16).tril().div(torch.arange(1, 17)[:, None])
    positions = torch.arange(16).expand(2, 2, 16)
    step = Namm(NammConfig(update_interval=16, selection="padded"), theta).step(attention, positions)
    assert step.keep.sum(-1).tolist() == ([[16, 16], [1, 1]] if greedy_first else [[1, 1], [16, 16]])
    assert step.keep[:, :, -1].all()


def test_a_score_of_zero_keeps_and_the_newest_stays():
    positions = torch.arange(16).expand(1, 1, 16)
    attention = torch.ones(1, 1, 16, 16).tril().div(torch.arange(1, 17)[:, None])
    for bias, kept in [(0.0, 16), (-1e-30, 1)]:
        theta = np.zeros(NUM_PARAMETERS, dtype=np.float32)
        theta[-1] = bias
        step = Namm(NammConfig(update_interval=16, selection="ragged"), theta).step(attention, positions)
        assert step.keep.sum() == kept and step.keep[0, 0, -1]


@pytest.mark.parametrize("pieces", [(16, 48), (32, 32), (16, 16, 16, 16)])
def test_updates_that_forget_nothing_equal_one_long_update(pieces):
    """The moving average goes on over updates as if there had been none."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(2, 2, 64, 64)), dtype=torch.float32)
    attention = logits.masked_fill(torch.ones(64, 64).triu(1).bool(), -torch.inf).softmax(-1)
    positions = torch.arange(64).expand(2, 2, 64)
    keep_all = np.zeros(NUM_PARAMETERS, dtype=np.float32)
    whole = Namm(NammConfig(update_interval=64), keep_all).step(attention, positions)
    state, start = None, 0
    for size in pieces:
        end = start + size
        namm = Namm(NammConfig(update_interval=size), keep_all)
        step = namm.step(attention[:, :, start:end, :end], positions[:, :, :end], state)
        state, start = step.state, end
    assert_close(step.average, whole.average, 1e-6, "averages")


@slow_oracle
@given(
    rows=st.integers(1, 3),
    calls=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_streaming_in_any_pieces_equals_the_whole(rows, calls, seed):
    """Rows advance by counts of their own, from any phase of a hop; averages hold all complete frames."""
    rng, heads, keys = np.random.default_rng(seed), 2, 3
    stream = Spectrogram(NammConfig(update_interval=16))
    state = stream.start(rows, heads, torch.device("cpu"))
    state = {name: t.new_zeros(*t.shape[:3], keys) for name, t in state.items()}
    signals = [np.zeros((heads, 0, keys)) for _ in range(rows)]
    for counts in calls:
        counts = counts[:rows]
        if not any(counts):
            continue
        attention = np.zeros((rows, heads, max(counts), keys))
        fed = [s.shape[1] for s in signals]
        for r, count in enumerate(counts):
            new = rng.random((heads, count, keys))
            attention[r, :, max(counts) - count :] = new
            signals[r] = np.concatenate([signals[r], new], axis=1)
        state = stream.observe(state, torch.tensor(attention, dtype=torch.float32), fed, counts)
        for r, signal in enumerate(signals):
            if signal.shape[1] < HOP:
                assert not state["average"][r].any()
                continue
            for h in range(heads):
                expected = np.stack([moving_average(spectrogram(signal[h, :, k])) for k in range(keys)], axis=1)
                assert_close(state["average"][r, h], expected, 1e-5, f"row {r} after {signal.shape[1]} queries")
