import numpy as np
import pytest
from scipy import linalg

from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import resample
from stages.evaluate.metrics import fid


def features(n, d, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(loc=shift, size=(n, d)) @ rng.normal(size=(d, d)) / np.sqrt(d)


WIDE, TALL = (20, 50), (80, 12)  # fewer, and more, images than features


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_same_features_give_zero(shape):
    rows = features(*shape)
    assert fid.compute(real=rows, synthetic=rows) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_a_shift_gives_its_square(shape):
    rows = features(*shape)
    shift = np.linspace(-1, 1, shape[1])
    expected = float(shift @ shift)
    assert fid.compute(real=rows, synthetic=rows + shift) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_a_wider_spread_gives_the_closed_form(shape):
    rows = features(*shape)
    rows -= rows.mean(axis=0)
    trace = np.trace(np.cov(rows, rowvar=False))
    found = fid.compute(real=rows, synthetic=3 * rows)
    assert found == pytest.approx(4 * trace, rel=1e-9)  # (3 - 1)^2 tr C


def test_equals_the_matrix_square_root():
    real, synthetic = features(*TALL), features(*TALL, shift=0.3, seed=1)
    a, b = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    shift = real.mean(axis=0) - synthetic.mean(axis=0)
    root = linalg.sqrtm(a @ b).real
    expected = shift @ shift + np.trace(a + b - 2 * root)
    assert fid.compute(real=real, synthetic=synthetic) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("shape", "tolerance"), [(TALL, 1e-5), ((300, 40), 1e-5)])
def test_equals_torchmetrics(shape, tolerance):
    torch = pytest.importorskip("torch")
    from torchmetrics.image.fid import _compute_fid

    n, d = shape
    real, synthetic = features(n, d), features(n, d, shift=0.2, seed=1)
    parts = []
    for rows in (real, synthetic):
        parts += [
            torch.from_numpy(rows.mean(axis=0)),
            torch.from_numpy(np.cov(rows, rowvar=False)),
        ]
    expected = float(_compute_fid(*parts))
    assert fid.compute(real=real, synthetic=synthetic) == pytest.approx(expected, rel=tolerance)


def test_rank_deficiency_stays_real_and_above_zero():
    found = fid.compute(real=features(5, 200), synthetic=features(3, 200, seed=1))
    assert np.isfinite(found)
    assert found > 0


def test_it_is_symmetric_and_grows_with_the_shift():
    real = features(*TALL)
    near, far = (features(*TALL, shift=s, seed=1) for s in (0.2, 0.8))
    assert fid.compute(real=real, synthetic=near) < fid.compute(real=real, synthetic=far)
    assert fid.compute(real=real, synthetic=far) == pytest.approx(
        fid.compute(real=far, synthetic=real), rel=1e-9
    )


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_draws_equal_explicit_copies(shape):
    n, d = shape
    rng = np.random.default_rng(3)
    real = resample(features(n, d), list(np.arange(n) // 2), num_draws=4, rng=rng)
    synthetic = resample(features(n, d, 0.3, 1), list(range(n)), num_draws=4, rng=rng)
    for row, value in enumerate(fid.resample(real=real, synthetic=synthetic)):
        copies = [
            np.repeat(s.features, s.row_weights[row].astype(int), axis=0) for s in (real, synthetic)
        ]
        expected = fid.compute(real=copies[0], synthetic=copies[1])
        assert value == pytest.approx(expected, rel=1e-8)


def test_more_draws_than_allowed_are_left_out():
    rng = np.random.default_rng(0)
    real = resample(features(6, 9), list(range(6)), num_draws=250, rng=rng)
    assert fid.SPEC.max_draws == 200
    assert len(fid.resample(real=real, synthetic=real)) == 201
    tall = resample(features(9, 2), list(range(9)), num_draws=250, rng=rng)
    assert len(fid.resample(real=tall, synthetic=tall)) == 1 + fid.MAX_DRAWS_LARGE


def test_one_image_is_refused():
    with pytest.raises(SampleSizeError, match="fid needs at least 2 synthetic images, found 1"):
        fid.compute(real=features(5, 3), synthetic=features(1, 3))


def test_advice_below_as_many_images_as_features():
    assert fid.SPEC.advise(n=1281, num_features=1280) is None
    advice = fid.SPEC.advise(n=500, num_features=1280)
    assert advice is not None
    assert "n = 500 on 1280 features" in advice
