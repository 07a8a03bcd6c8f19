import numpy as np
import pytest

from pipeline.errors import SampleSizeError
from stages.components.statistics import kernel_distance
from stages.components.statistics.bootstrap import Resampled
from stages.evaluate.metrics import kid


def features(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 12))


def test_is_the_kernel_distance():
    sides = {"real": features(9), "synthetic": features(7, seed=1)}
    expected = kernel_distance.compute(**sides)
    drawn = {side: Resampled.once(rows) for side, rows in sides.items()}
    assert kid.resample(**drawn)[0] == expected
    same = Resampled.once(sides["real"])
    assert kid.resample(real=same, synthetic=same, paired=True)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n_real", "n_synthetic", "side"), [(1, 5, "real"), (5, 1, "synthetic")])
def test_one_image_is_refused(n_real, n_synthetic, side):
    with pytest.raises(SampleSizeError, match=f"at least 2 {side} images, found 1"):
        kid.resample(
            real=Resampled.once(features(n_real)), synthetic=Resampled.once(features(n_synthetic))
        )
