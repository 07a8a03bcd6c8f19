"""Intervals of shares: coverage where slices of a subject agree, and what the extremes give."""

import numpy as np
import pytest

from stages.components.statistics import proportions
from stages.components.statistics.bootstrap import resample
from stages.components.statistics.proportions import (
    difference_interval,
    effective_size,
    share_interval,
)

CORRELATION = 0.3  # of two slices of one subject
NUM_SAMPLES, NUM_DRAWS = 800, 400


def weights_of(sizes):
    """Draw groups of some sizes: how often each counts, (1 + draws, groups)."""
    groups = np.repeat(np.arange(len(sizes)), sizes).tolist()
    rng = np.random.default_rng(5)
    drawn = resample(np.zeros((len(groups), 1)), groups, num_draws=NUM_DRAWS, rng=rng)
    return drawn.weights


def coverage(truth, intervals):
    return np.mean([low <= truth <= high for low, high in intervals])


@pytest.mark.parametrize(("num_groups", "share"), [(28, 0.5), (28, 0.85), (60, 0.7), (96, 0.9)])
def test_intervals_cover_shares_and_differences_where_slices_of_a_subject_agree(num_groups, share):
    rng = np.random.default_rng(num_groups)
    sizes = rng.integers(4, 13, num_groups)
    weights, count = weights_of(sizes), int(sizes.sum())
    scale = 1 / CORRELATION - 1
    subjects = rng.beta(share * scale, (1 - share) * scale, (NUM_SAMPLES, num_groups))
    other = share - 0.08
    harder = subjects * other / share  # another arm, less often right of the same subjects
    values = [
        ((weights @ rng.binomial(sizes, chances).T) / (weights @ sizes)[:, None]).T
        for chances in (subjects, harder)
    ]
    shares = [
        share_interval(row, count=count, num_groups=num_groups, confidence=0.95)
        for row in values[0]
    ]
    assert 0.93 <= coverage(share, shares) <= 0.97
    differences = [
        difference_interval(row, num_groups=num_groups, confidence=0.95)
        for row in values[0] - values[1]
    ]
    assert 0.93 <= coverage(share - other, differences) <= 0.97
    by_slice = [proportions.wilson(row[0] * count, count, confidence=0.95) for row in values[0]]
    assert coverage(share, by_slice) < 0.85


def test_the_effective_size_is_that_of_slices_or_of_subjects_at_the_extremes():
    rng = np.random.default_rng(1)
    sizes = np.full(40, 8)
    weights = weights_of(sizes)
    subjects = 8 * (rng.random(40) < 0.6)
    alike = (weights @ subjects) / (weights @ sizes)  # every slice as its subject
    assert effective_size(alike, count=320, num_groups=40) == pytest.approx(40, rel=0.15)
    apart = np.mean(
        [
            effective_size(weights @ rng.binomial(8, 0.6, 40) / (weights @ sizes),
                           count=320, num_groups=40)
            for _ in range(40)
        ]
    )  # fmt: skip
    assert apart > 240  # never more than the slices, so less than 320 on average


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_right_or_all_wrong_counts_groups_and_not_slices(share):
    draws = np.full(101, share)
    assert effective_size(draws, count=224, num_groups=28) == pytest.approx(28)
    low, high = share_interval(draws, count=224, num_groups=28, confidence=0.95)
    assert high - low == pytest.approx(0.135, abs=0.005)


def test_one_wrong_slice_narrows_no_interval_by_much():
    """Near 0 and 1 the few groups that differ say little of how alike slices of a group are."""
    sizes = np.full(28, 8)
    weights = weights_of(sizes)
    right = np.full(28, 8)
    right[3] = 7
    nearly = (weights @ right) / (weights @ sizes)
    low, high = share_interval(nearly, count=224, num_groups=28, confidence=0.95)
    assert high < 1
    assert high - low > 0.06  # of independent slices: 0.024


def test_no_interval_of_a_difference_has_no_width():
    same = np.zeros(101)
    low, high = difference_interval(same, num_groups=60, confidence=0.95)
    assert -0.07 < low < -0.05 and 0.05 < high < 0.07
    low, high = difference_interval(np.ones(101), num_groups=60, confidence=0.95)
    assert (0.9 < low < 0.95, high) == (True, 1.0)


def test_arms_that_differ_in_what_counts_alone_are_not_known_to_the_last_point():
    """Wrong about the same image of 56 and of 55: draws differ by rounding, and by nothing else."""
    weights = weights_of(np.ones(56, int))
    right = np.ones(56)
    right[7] = 0
    first, second = weights @ right / 56, weights[:, 1:] @ right[1:] / weights[:, 1:].sum(axis=1)
    low, high = difference_interval(first - second, num_groups=55, confidence=0.95)
    assert high - low > 0.06


def test_draws_without_a_value_are_left_out_and_none_give_no_interval():
    draws = np.array([0.5, 0.4, np.nan, 0.6])
    with_gap = share_interval(draws, count=20, num_groups=10, confidence=0.95)
    assert with_gap == share_interval(draws[[0, 1, 3]], count=20, num_groups=10, confidence=0.95)
    assert share_interval(draws[:1], count=20, num_groups=10, confidence=0.95) == (None, None)
    assert difference_interval(draws[:1], num_groups=10, confidence=0.95) == (None, None)


def test_one_group_says_nothing_of_how_groups_vary():
    draws = np.array([0.5, 0.5, 0.5])
    assert share_interval(draws, count=8, num_groups=1, confidence=0.95) == (None, None)
    assert difference_interval(draws, num_groups=1, confidence=0.95) == (None, None)
