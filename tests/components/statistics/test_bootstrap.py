import numpy as np
import pytest

from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import (
    Resampled,
    interval,
    mean_over_groups,
    resample,
    weighted_mean,
)

GROUPS = ["a", "a", "b", "c", "c", "c", "d", "e"]


def draw(num_draws=50, seed=0, groups=GROUPS):
    rows = np.arange(len(groups), dtype=np.float32)[:, None]
    rng = np.random.default_rng(seed)
    return resample(rows, groups, num_draws=num_draws, rng=rng)


def test_first_row_is_the_sample_itself():
    assert (draw().row_weights[0] == 1).all()


def test_a_draw_takes_as_many_groups_as_there_are_and_whole_ones():
    sample = draw()
    assert sample.weights.shape == (51, 5)
    assert (sample.weights.sum(axis=1) == 5).all()
    rows = sample.row_weights
    assert (rows[:, 0] == rows[:, 1]).all()
    assert (rows[:, 3] == rows[:, 5]).all()


def test_one_seed_repeats_and_two_differ():
    assert (draw(seed=1).weights == draw(seed=1).weights).all()
    assert (draw(seed=1).weights != draw(seed=2).weights).any()


def test_every_draw_holds_two_groups():
    sample = draw(num_draws=3000, groups=list("aabcde"))  # 5 of them would hold one
    assert ((sample.weights > 0).sum(axis=1) >= 2).all()


@pytest.mark.parametrize("groups", ["aaa", "abcdabcd"])
def test_a_few_groups_have_no_draws(groups):
    assert draw(groups=list(groups)).weights.shape == (1, len(set(groups)))


def test_features_become_float64():
    assert draw().features.dtype == np.float64
    assert Resampled.once(np.zeros((3, 2), np.float32)).features.dtype == np.float64


def test_too_few_images_are_refused():
    with pytest.raises(SampleSizeError, match="found 1 images and 1 groups"):
        draw(groups=["a"])


def test_images_without_a_group_are_refused():
    with pytest.raises(SampleSizeError, match="found 3 images and 2 groups"):
        resample(np.zeros((3, 1)), ["a", "b"], num_draws=1, rng=np.random.default_rng(0))


def test_interval_is_that_of_percentiles():
    low, high = interval(np.arange(101, dtype=float), confidence=0.9)
    assert (low, high) == pytest.approx((5, 95))


def test_centred_interval_keeps_its_width_and_moves():
    draws = np.arange(101, dtype=float)
    assert interval(draws, confidence=0.9, centre=0.0) == pytest.approx((-45, 45))


def test_no_draws_give_no_interval():
    assert interval(np.zeros(0), confidence=0.95) == (None, None)


def test_draws_that_are_all_the_same_give_no_interval():
    assert interval(np.full(100, 0.3), confidence=0.95) == (None, None)
    nearly = np.concatenate([np.zeros(999), [0.1]])  # both ends are 0
    assert interval(nearly, confidence=0.95) == (None, None)


def test_mean_and_its_spread_are_those_of_theory():
    rng = np.random.default_rng(3)
    values = rng.normal(size=400)
    sample = resample(values[:, None], list(range(400)), num_draws=500, rng=rng)
    means = weighted_mean(values, sample)
    assert means[0] == pytest.approx(values.mean())
    # Standard error of a spread from 500 draws: 3 %.
    assert means[1:].std() == pytest.approx(values.std() / 20, rel=0.12)


def test_a_mean_is_drawn_by_groups():
    values, groups = np.array([0.0, 1.0] * 6), [k // 2 for k in range(12)]
    rng = np.random.default_rng(0)
    means, num_groups = mean_over_groups(values, groups, num_draws=50, rng=rng)
    assert num_groups == 6
    assert np.allclose(means, 0.5)
    with pytest.raises(SampleSizeError, match="found 1 images"):
        mean_over_groups(values[:1], groups[:1], num_draws=0, rng=rng)


def test_groups_widen_the_interval():
    rng = np.random.default_rng(4)
    values = np.repeat(rng.normal(size=40), 10)
    by_slice = resample(values[:, None], list(range(400)), num_draws=300, rng=rng)
    by_group = resample(values[:, None], list(np.repeat(range(40), 10)), num_draws=300, rng=rng)
    narrow, wide = (weighted_mean(values, s)[1:].std() for s in (by_slice, by_group))
    assert wide > 2 * narrow  # sqrt(10) in theory


def pooled(groups, pool, num_draws=400):
    rng = np.random.default_rng(1)
    return resample(np.zeros((len(groups), 1)), groups, num_draws=num_draws, rng=rng, pool=pool)


def test_samples_of_one_pool_share_their_draws_by_name():
    pool = list("abcdefghijkl")
    names = ("abcdefghijkl", "lkjihgfedcba", "cdefghijkl")
    whole, turned, part = (pooled(list(each), pool) for each in names)
    np.testing.assert_array_equal(whole.weights, turned.weights[:, ::-1])
    np.testing.assert_array_equal(whole.weights[:, 2:], part.weights)


def test_without_more_than_itself_a_pool_is_the_plain_bootstrap():
    plain = resample(np.zeros((8, 1)), list("abcdefgh"), num_draws=9, rng=np.random.default_rng(1))
    found = pooled(list("abcdefgh"), list("abcdefgh"), 9)
    np.testing.assert_array_equal(found.weights, plain.weights)


def test_a_small_part_of_a_pool_holds_two_groups_in_every_draw():
    sample = pooled(list("abcde"), [*"abcde", *map(str, range(40))])
    assert ((sample.weights > 0).sum(axis=1) >= 2).all()
