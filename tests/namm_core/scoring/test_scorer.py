"""The scorers: their sizes, and the perceptron against its formula. The backward attention has `test_golden.py`."""

import numpy as np
import pytest
import torch

from namm_core import FeatureStatistics, Namm, NammConfig
from namm_core.scoring.scorer import num_parameters


def test_sizes():
    assert num_parameters(NammConfig()) == 4172
    assert num_parameters(NammConfig(scorer="mlp")) == 25 * 25 + 25 + 25 + 1 == 676
    assert num_parameters(NammConfig(scorer="mlp", n_fft=8, hop=4, hidden=64)) == 13 * 13 + 13 + 13 + 1


def test_an_unknown_scorer_is_refused():
    with pytest.raises(ValueError, match="unknown scorer 'mpl'; did you mean 'mlp'. Known: bam, linear, mlp$"):
        NammConfig(scorer="mpl")


def test_theta_of_another_scorer_is_refused():
    with pytest.raises(ValueError, match="needs .676,."):
        Namm(NammConfig(scorer="mlp"), np.zeros(4172, np.float32))


def test_the_perceptron_is_its_formula_for_every_candidate():
    """h = e + relu(e W1 + b1), score = h . w2 + b2 in float64, on a step's own averages and true ages."""
    random = np.random.default_rng(0)
    thetas = random.normal(0, 0.3, (3, 676))
    statistics = FeatureStatistics(torch.rand(17), torch.rand(17) + 0.5, 9.0)
    attention = torch.from_numpy(random.dirichlet(np.ones(48), (3, 2, 48))).float().tril()
    positions = torch.arange(48).expand(3, 2, 48)
    namm = Namm(NammConfig(update_interval=48, scorer="mlp"), thetas, statistics)
    step = namm.step(attention, positions)
    age = (47 - np.arange(48))[:, None] * 50_000.0 ** (-np.arange(4) / 4)
    for row, theta in enumerate(thetas):
        w1, b1, w2, b2 = theta[:625].reshape(25, 25), theta[625:650], theta[650:675], theta[675]
        for head in range(2):
            features = (step.average[row, head].numpy() - statistics.mean.numpy()) / np.sqrt(statistics.var.numpy())
            e = np.concatenate([np.sin(age), np.cos(age), features], axis=1)
            expected = (e + np.maximum(e @ w1 + b1, 0)) @ w2 + b2
            np.testing.assert_allclose(step.scores[row, head], expected, atol=1e-4)
            kept = np.append(expected[:-1] >= 0, True)
            assert np.abs(expected).min() > 1e-4 and step.keep[row, head].tolist() == kept.tolist()
        alone = Namm(namm.config, theta, statistics).step(attention[row : row + 1], positions[:1])
        torch.testing.assert_close(alone.scores[0], step.scores[row], atol=1e-5, rtol=1e-5)
    one = Namm(namm.config, thetas[0], statistics).step(attention, positions)  # one candidate for all rows
    torch.testing.assert_close(one.scores[0], step.scores[0], atol=1e-5, rtol=1e-5)


def test_zeros_keep_everything_and_a_saved_one_comes_back(tmp_path):
    namm = Namm(NammConfig(update_interval=16, scorer="mlp"))
    positions = torch.arange(16).expand(1, 1, 16)
    assert namm.step(torch.rand(1, 1, 16, 16).tril(), positions).keep.all()
    namm.theta[-1] = -1.0  # the bias, in every scorer the last number: nothing but the newest stays
    namm.save_pretrained(tmp_path)
    back = Namm.from_pretrained(tmp_path)
    assert back.config == namm.config and back.num_parameters == 676
    assert back.step(torch.rand(1, 1, 16, 16).tril(), positions).keep.sum() == 1
