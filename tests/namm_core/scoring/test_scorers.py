"""One matrix of all scorers: a new file in `namm_core/scoring/scorers` inherits every test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from namm_core import FeatureStatistics, Namm, NammConfig, plugins
from namm_core.config import SCORERS
from namm_core.protocols import Entries, Scorer
from namm_core.scoring import scorer
from namm_core.scoring.backward_attention import BLOCK

NAMES = plugins.modules(SCORERS)


def namm(name: str, rows: int = 1) -> Namm:
    config, random = NammConfig(scorer=name), torch.Generator().manual_seed(1)
    theta = 0.2 * torch.randn(rows, scorer.num_parameters(config), generator=random)
    statistics = FeatureStatistics(torch.rand(17, generator=random), torch.rand(17, generator=random), 9.0)
    return Namm(config, theta, statistics)


def layer(rows: int = 3, heads: int = 2, columns: int = 70) -> tuple[dict[str, torch.Tensor], Entries]:
    """The state and entries of a layer whose heads hold unequal numbers of tokens."""
    random = torch.Generator().manual_seed(0)
    average = torch.rand(rows, heads, 17, columns, generator=random)
    positions = torch.arange(columns).repeat(rows, heads, 1) * 3
    for head, blank in enumerate([0, 5, 60, 1, 0, 33][: rows * heads]):
        positions.view(-1, columns)[head, :blank] = -1
    return {"average": average}, Entries(
        positions=positions, newest=torch.full((rows,), 3 * columns - 3), row=torch.arange(rows)
    )


def test_every_member_of_the_interface_is_there():
    members = [name for name in vars(Scorer) if not name.startswith("_")]
    assert {"layout", "prepare", "score", "score_tokens", "derivatives"} == set(members)
    for name in NAMES:
        assert all(callable(getattr(scorer.find(name), member)) for member in members), name


def test_theta_is_counted_without_torch():
    """What a dry run needs; of every scorer that this package ships."""
    code = (
        "import sys; from namm_core import NammConfig, num_parameters, plugins\n"
        "from namm_core.config import SCORERS\n"
        "print({name: num_parameters(NammConfig(scorer=name)) for name in plugins.modules(SCORERS)})\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(plugins.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"bam": 4172, "mlp": 676}.items() <= dict(eval(done.stdout)).items()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_of_a_layer_score_as_their_embeddings(name, rows):
    policy, (state, view) = namm(name, rows), layer()
    scores, valid = policy.scores(state, view), view.positions >= 0
    weights = policy.weights_at(view)
    expected = scorer.score(policy.config, weights, policy.embeddings(state, view).flip(2), view.widths()).flip(2)
    torch.testing.assert_close(scores[valid], expected[valid], rtol=0, atol=3e-6 * float(expected[valid].abs().max()))
    for row in range(3):  # alone
        one = Namm(policy.config, policy.theta[row % rows], policy.statistics)
        alone = Entries(positions=view.positions[row : row + 1], newest=view.newest[:1], row=torch.zeros(1).long())
        found = one.scores({"average": state["average"][row : row + 1]}, alone)
        torch.testing.assert_close(found[0][valid[row]], scores[row][valid[row]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_change_the_scores_of_tokens(name):
    policy, (state, view) = namm(name), layer()
    before, valid = policy.scores(state, view), view.positions >= 0
    state["average"].masked_fill_(~valid[:, :, None], 1e3)
    torch.testing.assert_close(policy.scores(state, view)[valid], before[valid])


@pytest.mark.parametrize("name", NAMES)
def test_zeros_score_zero_and_the_last_number_is_the_bias(name):
    policy, (state, view) = Namm(NammConfig(scorer=name)), layer()
    assert not policy.scores(state, view).any()
    theta = torch.zeros(policy.num_parameters)
    theta[-1] = 0.25
    valid = view.positions >= 0
    assert torch.equal(Namm(policy.config, theta).scores(state, view)[valid], torch.full((int(valid.sum()),), 0.25))


@pytest.mark.parametrize("tokens", [40, BLOCK + 30])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_taken_one_by_one(name, tokens):
    """Each score alone, through `score`, by its token's own embedding."""
    policy, random = namm(name), torch.Generator().manual_seed(2)
    network, weights = policy.scorer, scorer.unpack(policy.config, policy.theta)
    x = torch.randn(1, 2, tokens, policy.config.embedding, generator=random)
    found = network.derivatives(weights, x)
    assert found.shape == x.shape and not found.requires_grad
    x.requires_grad_()
    scores = network.score(network.prepare(weights), x)
    for i in {0, 1, tokens // 2, tokens - 1}:
        one_by_one = torch.autograd.grad(scores[0, :, i].sum(), x, retain_graph=True)[0][0, :, i]
        torch.testing.assert_close(found[0, :, i], one_by_one, rtol=1e-3, atol=1e-5)
