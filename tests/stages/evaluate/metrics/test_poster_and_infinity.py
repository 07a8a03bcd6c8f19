import numpy as np
import pytest

from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import Resampled, resample
from stages.evaluate.metrics import fid, fid_infinity, vgg_fd, vgg_kid_biased

D = 8


def features(n, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(shift, 1.0, (n, D))


def drawn(n, shift=0.0, seed=0, num_draws=12):
    rng = np.random.default_rng(seed)
    return resample(features(n, shift, seed), list(range(n)), num_draws=num_draws, rng=rng)


def biased(real, synthetic):
    sides = {"real": Resampled.once(real), "synthetic": Resampled.once(synthetic)}
    return vgg_kid_biased.resample(**sides)[0]


def test_infinity_is_nearer_to_the_truth_than_the_plain_distance():
    truth = D * 0.3**2  # a mean shift between equal covariances
    plain, extrapolated = [], []
    for seed in range(6):
        real, synthetic = features(60, seed=seed), features(60, 0.3, seed=seed + 50)
        plain.append(fid.compute(real=real, synthetic=synthetic) - truth)
        extrapolated.append(fid_infinity.compute(real=real, synthetic=synthetic) - truth)
    assert np.mean(plain) > 0.1
    assert abs(np.mean(extrapolated)) < 0.5 * np.mean(plain)


def test_infinity_repeats():
    sides = {"real": features(60), "synthetic": features(60, 0.3, 1)}
    assert fid_infinity.compute(**sides) == fid_infinity.compute(**sides)


def test_infinity_has_few_draws_and_the_first_is_the_estimate():
    found = fid_infinity.resample(real=drawn(60, num_draws=30), synthetic=drawn(60, 0.3, 1, 30))
    assert len(found) == 21
    expected = fid_infinity.compute(real=features(60), synthetic=features(60, 0.3, 1))
    assert found[0] == pytest.approx(expected)


def test_infinity_is_refused_below_twice_as_many_images_as_features():
    assert fid_infinity.SPEC.refuse(n=2560, num_features=1280) is None
    why = fid_infinity.SPEC.refuse(n=500, num_features=1280)
    assert why == "fid_infinity needs at least 2560 images a side on 1280 features"
    with pytest.raises(SampleSizeError, match="at least 50 real images, found 9"):
        fid_infinity.compute(real=features(9), synthetic=features(60))


def test_the_biased_distance_is_above_nought_within_one_distribution():
    values = [biased(features(40, seed=s), features(40, seed=s + 99)) for s in range(5)]
    assert min(values) > 0.05


def test_the_biased_distance_repeats_and_draws_scatter():
    real, synthetic = drawn(40), drawn(40, 0.5, 1)
    found = vgg_kid_biased.resample(real=real, synthetic=synthetic)
    assert found[0] == pytest.approx(biased(real.features, synthetic.features))
    assert len(found) == 13 and found[1:].std() > 0
    with pytest.raises(SampleSizeError, match="at least 10 synthetic images, found 3"):
        biased(features(20), features(3))


def test_the_posters_distance_has_fids_draws():
    real, synthetic = drawn(20), drawn(20, 0.5, 1)
    np.testing.assert_array_equal(
        vgg_fd.resample(real=real, synthetic=synthetic),
        fid.resample(real=real, synthetic=synthetic),
    )
    with pytest.raises(SampleSizeError, match="vgg_fd needs at least 2 real images, found 1"):
        vgg_fd.resample(real=Resampled.once(features(1)), synthetic=Resampled.once(features(5)))


def test_statistics_of_deficient_rank_give_the_closed_form():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 40))
    cov = root.T @ root
    mean = np.zeros(40)
    assert fid.from_statistics((mean, cov), (mean, cov)) == pytest.approx(0, abs=1e-6)
    found = fid.from_statistics((mean, cov), (mean + 1, 4 * cov))
    assert found == pytest.approx(40 + np.trace(cov), rel=1e-9)  # (2 - 1)^2 tr C
