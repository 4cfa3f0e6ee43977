"""The oracle against the recorded runs, so that what the fast code is compared with is itself proven.

The recordings are float32; the oracle is float64. Every intermediate is compared, since some wrong
conventions barely change the kept sets.
"""

import numpy as np
import pytest

from tests.namm_core.recordings import COMPONENTS, Component
from tests.namm_core.reference import Reference, Statistics, select


def assert_close(actual, expected, tolerance, what):
    worst = np.abs(np.asarray(actual) - np.asarray(expected)).max()
    assert worst <= tolerance, f"{what}: largest difference {worst:.2e}, allowed {tolerance:.0e}"


def compare(step, recorded, row, head, tolerance):
    """One head's step of the oracle against one recorded update."""
    assert_close(step.magnitudes[:, recorded.magnitude_columns], recorded.magnitudes[row, head], 2e-5, "magnitudes")
    assert_close(step.average, recorded.average[row, head], 5e-6, "averages")
    assert_close(step.age, recorded.age[row, head], 1e-6, "age")
    assert_close(step.features, recorded.features[row, head], tolerance, "features")
    assert_close(step.scores, recorded.scores[row, head], tolerance, "scores")


@pytest.mark.parametrize("name", COMPONENTS)
def test_three_consecutive_updates(golden, name):
    component = Component(golden, name)
    reference = Reference(component.theta[0], "padded", component.statistics)
    for update in component.updates():
        steps, _ = reference.update(update.heads(0))
        for head, step in enumerate(steps):
            compare(step, update, 0, head, component.tolerance)
            assert np.flatnonzero(step.keep).tolist() == update.retained[0, head].tolist()


def test_each_row_of_a_batch_has_its_own_theta(golden):
    component = Component(golden, "component_b2_n64_norm")
    first = next(component.updates())
    for row, theta in enumerate(component.theta):
        steps, _ = Reference(theta, "padded", component.statistics).update(first.heads(row))
        for head, step in enumerate(steps):
            compare(step, first, row, head, component.tolerance)


def test_statistics_merge_over_updates(golden):
    component = Component(golden, "component_stats_n64")
    reference = Reference(component.theta[0], "padded")
    running = None
    for update in component.updates():
        steps, _ = reference.update(update.heads(0))
        averages = np.stack([step.average for step in steps])
        assert_close(averages, update.average[0], 5e-6, "averages")
        running = running.merge(Statistics.of(averages)) if running else Statistics.of(averages)
        assert_close(running.normalise(averages), update.features[0], 1e-4, "features")
        assert all(step.keep.all() for step in steps), "theta = 0 scores 0, and 0 keeps"
    assert_close(running.mean, component.statistics.mean, 1e-6, "mean")
    assert_close(running.var, component.statistics.var, 1e-6, "variance")
    assert running.count == component.statistics.count


def test_merged_statistics_are_those_of_the_pooled_tokens():
    rng = np.random.default_rng(0)
    a, b = rng.gamma(1.0, size=(40, 17)), 3 * rng.gamma(2.0, size=(7, 17))
    merged, pooled = Statistics.of(a).merge(Statistics.of(b)), Statistics.of(np.concatenate([a, b]))
    np.testing.assert_allclose(merged.mean, pooled.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.var, pooled.var, rtol=1e-12)


def test_padded_fills_short_heads_with_their_best_negatives():
    scores = [np.array([0.3, -1.0, 0.0, -0.2]), np.array([-0.1, -3.0, -2.0, -9.0])]
    padded, _ = select(scores, [3, 3], "padded")
    ragged, _ = select(scores, [3, 3], "ragged")
    assert [k.tolist() for k in padded] == [[True, False, True, True], [True, False, True, True]]
    assert [k.tolist() for k in ragged] == [[True, False, True, True], [False, False, False, True]]
