import numpy as np
import pytest

from stages.components.features.nearest import Nearest, Threshold
from stages.components.statistics.bootstrap import Resampled, resample
from stages.components.statistics.proportions import share_interval
from stages.evaluate.left_out import MAX_FOLDS, LeftOut


def nearest(distance, correlation=None):
    rows = np.zeros(len(distance), int)
    far = np.zeros(len(distance)) if correlation is None else correlation
    return Nearest(np.asarray(distance, float), rows, np.asarray(far, float), rows)


def draw(groups, num_draws=0, seed=0):
    rng = np.random.default_rng(seed)
    return resample(np.zeros((len(groups), 1)), groups, num_draws=num_draws, rng=rng)


def test_each_slice_is_called_by_thresholds_without_its_group():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 9)
    held_out = nearest(rng.gamma(3, size=108), rng.random(108))
    arm = nearest(rng.gamma(2, size=30), rng.random(30) + 0.1)
    own, others = [], []
    for group in range(12):
        rule = Threshold.of(held_out.take(np.flatnonzero(groups != group)))
        own += rule.is_copy(held_out.take(np.flatnonzero(groups == group))).tolist()
        others.append(rule.is_copy(arm).mean())
    found = LeftOut(held_out, draw(groups.tolist()))
    assert found.held_out_share(range(108))[0] == pytest.approx(np.mean(own))
    assert found.share(arm, np.ones((1, 30)))[0] == pytest.approx(np.mean(others))


def test_a_draw_is_its_groups_as_often_as_they_were_drawn():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(6), 20)
    held_out, arm = nearest(rng.gamma(3, size=120)), nearest(rng.gamma(2, size=40))
    drawn = draw(groups.tolist(), 4)
    images = draw(list(range(40)), 4, seed=2).row_weights
    found = LeftOut(held_out, drawn).share(arm, images)
    for row in range(5):
        copies = np.repeat(np.arange(120), drawn.row_weights[row].astype(int))
        shares, sizes = [], []
        for group in np.unique(groups[copies]):
            rule = Threshold.of(held_out.take(copies[groups[copies] != group]))
            shares.append(np.average(rule.is_copy(arm), weights=images[row]))
            sizes.append((groups[copies] == group).sum())
        assert found[row] == pytest.approx(np.average(shares, weights=sizes))


def test_an_outlier_is_called_though_it_would_have_set_the_threshold():
    distance = np.ones(40)
    distance[0] = 0.1
    found = LeftOut(nearest(distance), draw(list(range(40))))
    assert found.held_out_share(range(40))[0] == pytest.approx(1 / 40)
    assert found.held_out_share(range(1, 40))[0] == 0


def test_many_groups_are_left_out_by_folds():
    count = 3 * MAX_FOLDS
    found = LeftOut(nearest(np.linspace(1, 2, count)), draw(list(range(count))))
    assert found.distance.shape == (1, MAX_FOLDS)
    assert found.weights.sum() == pytest.approx(1)


def test_a_draw_without_any_of_the_slices_is_left_out():
    drawn = Resampled(np.zeros((4, 1)), np.array([0, 0, 1, 2]), np.array([[1.0, 1, 1], [0, 1, 2]]))
    found = LeftOut(nearest([1.0, 1, 1, 1]), drawn).held_out_share([0, 1])
    assert found[0] == 0 and np.isnan(found[1])


def simulate(seed, num_groups=28, size=7, count=240):
    """Held-out slices that resemble each other within subjects, and an arm that copies nothing."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(rng.normal(size=num_groups), size)
    held_out = np.exp(np.sqrt(0.3) * subject + np.sqrt(0.7) * rng.normal(size=num_groups * size))
    return nearest(held_out), nearest(np.exp(rng.normal(size=count)))


def test_floor_and_innocent_arms_are_called_alike_and_intervals_hold():
    """Of 300 samples intervals held 0.937, and Wilson's, which take thresholds for known, 0.903."""
    groups = np.repeat(np.arange(28), 7).tolist()
    shares, intervals = [], []
    for seed in range(100):
        held_out, arm = simulate(seed)
        left_out = LeftOut(held_out, draw(groups, 60, seed))
        weights = draw(list(range(240)), 60, seed + 1000).row_weights
        values = left_out.share(arm, weights)
        shares.append((left_out.held_out_share(range(196))[0], values[0]))
        intervals.append(share_interval(values, count=240, num_groups=240, confidence=0.95))
    floor, share = np.mean(shares, axis=0)
    assert share == pytest.approx(floor, abs=3 * np.std(np.diff(shares)) / np.sqrt(100))
    assert np.mean([low <= share <= high for low, high in intervals]) >= 0.88
