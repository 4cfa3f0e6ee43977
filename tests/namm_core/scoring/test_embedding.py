"""Embeddings and scores in compiled loops are those of tensor operations. Three seconds, mostly compiling."""

import numpy as np
import pytest
import torch

from namm_core import FeatureStatistics, Namm, NammConfig, loops
from namm_core.protocols import View
from namm_core.scoring import backward_attention, bam_loops, scorer

pytestmark = pytest.mark.skipif(not loops.NUMBA, reason="numba is not installed")
LARGE = 0.8
WIDTHS = [[300, 130], [1, 0], [257, 256]]


def layer(config: NammConfig, widths: list[list[int]], dtype: torch.dtype = torch.float32) -> tuple[dict, View]:
    """A layer's state and view with heads of these widths, in strided views of tensors with room on the right."""
    random = torch.Generator().manual_seed(0)
    held = torch.tensor(widths)
    rows, heads = held.shape
    columns = int(held.max())
    room = torch.full((rows, heads, columns + 40), 10_000)
    positions = room[..., 8 : columns + 8]
    for row in range(rows):
        for head in range(heads):
            taken = torch.randperm(2 * columns - 1, generator=random)[: widths[row][head]].sort().values
            positions[row, head] = -1
            positions[row, head, columns - len(taken) :] = taken
    average = torch.rand(rows, heads, config.frequencies, columns + 40, generator=random)[..., 8 : columns + 8]
    keys = torch.randn(rows, heads, columns, 4, generator=random).to(dtype)
    newest = positions.amax((1, 2)).clamp(min=0)
    view = {"positions": positions, "newest": newest, "row": torch.arange(rows), "due": newest >= 0, "layer": 0}
    return {"average": average}, View(keys=keys, values=keys, **view)


def namm(config: NammConfig, rows: int = 1, scale: float = 0.1, statistics: bool = True) -> Namm:
    """Random memories."""
    random = torch.Generator().manual_seed(1)
    theta = scale * torch.randn(rows, Namm(config).num_parameters, generator=random)
    n = config.frequencies
    of = FeatureStatistics(torch.rand(n, generator=random), torch.rand(n, generator=random), 9.0)
    return Namm(config, theta, of if statistics else None)


CASES = {
    "one theta": ({}, {}),
    "a theta for each row": ({}, {"rows": 3}),
    "no statistics": ({}, {"statistics": False}),
    "logits too large to be bounded": ({}, {"scale": LARGE}),
    "other sizes": ({"n_fft": 8, "hop": 4, "age_dim": 4, "hidden": 8}, {"rows": 3}),
    "a perceptron": ({"scorer": "mlp"}, {"rows": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_tensor_operations(case):
    config, settings = CASES[case]
    policy = namm(NammConfig(**config), **settings)
    state, view = layer(policy.config, WIDTHS)
    valid = view.positions >= 0
    scores = policy.scores(state, view)
    with loops.left_out():
        expected = policy.scores(state, view)
    assert expected[valid].std() > 0.05
    torch.testing.assert_close(scores[valid], expected[valid], rtol=0, atol=2e-6 * float(expected[valid].abs().max()))
    assert scores.isfinite().all()  # padding too


@pytest.mark.parametrize("scale, bounded", [(0.1, True), (LARGE, False)])
def test_logits_of_one_case_are_bounded_and_those_of_another_are_not(scale, bounded):
    policy, widths = namm(NammConfig(), scale=scale), np.array([200, 100])
    state, view = layer(policy.config, [widths.tolist()])
    n = policy.config.embedding + 1
    size = n + -n % 16
    e, both = torch.zeros(2, 200, size), torch.zeros(2, n, 2 * size)
    ends = policy._tokens(state, view).write(np.arange(2), widths, e)
    weights = scorer.unpack(policy.config, policy.theta)
    bam_loops.centre(policy.scorer.prepare(weights), np.zeros(2, np.int64), ends, both)
    assert bam_loops.within(torch.bmm(e[..., :n], both), ends, widths, backward_attention.LARGEST) is bounded


def test_keys_in_half_precision_and_short_positions_change_nothing():
    policy = namm(NammConfig())
    state, view = layer(policy.config, WIDTHS)
    expected = policy.scores(state, view)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(policy.scores(*layer(policy.config, WIDTHS, dtype)), expected)


def test_not_a_number_is_not_lost():
    policy = namm(NammConfig())
    state, view = layer(policy.config, [[200, 200]])
    state["average"][0, 0, 3, 150] = torch.nan
    scores = policy.scores(state, view)
    assert scores[0, 0, :151].isnan().all()
    assert scores[0, 1].isfinite().all()


def test_widths_count_the_tokens():
    assert layer(NammConfig(), WIDTHS)[1].widths() == [300, 130, 1, 0, 257, 256]
