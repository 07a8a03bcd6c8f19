import contextlib
import io

import numpy as np
import pytest

from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import BLOCK, Resampled, resample
from stages.evaluate.metrics import prdc


def features(n, d=8, shift=0.0, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def scores(*, real, synthetic):
    drawn = prdc.resample(real=Resampled.once(real), synthetic=Resampled.once(synthetic))
    return {name: row[0] for (name, _), row in zip(prdc.SPEC.scores, drawn, strict=True)}


@pytest.mark.parametrize(("n", "m"), [(60, 60), (80, 50), (BLOCK + 6, 50), (50, BLOCK + 6)])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_equals_the_package_exactly(n, m, shift):
    package = pytest.importorskip("prdc")
    real, synthetic = features(n), features(m, shift=shift, seed=1)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = package.compute_prdc(real, synthetic, nearest_k=prdc.NEAREST_K)
    assert scores(real=real, synthetic=synthetic) == pytest.approx(expected, rel=1e-12)


def test_tight_samples_are_precise_and_do_not_recall():
    found = scores(real=features(200, 2), synthetic=features(200, 2, scale=0.1, seed=1))
    assert found["precision"] > 0.95
    assert found["recall"] < 0.2
    assert found["density"] > 0.5
    assert found["coverage"] < 0.3


def test_wide_samples_recall_and_are_not_precise():
    found = scores(real=features(200, 2), synthetic=features(200, 2, scale=8, seed=1))
    assert found["precision"] < 0.4
    assert found["recall"] > 0.9


def test_planted_outliers_cost_precision_by_their_share():
    synthetic = features(100, 2, seed=1)
    before = scores(real=features(100, 2), synthetic=synthetic)["precision"]
    synthetic[:30] = 50 + features(30, 2, seed=2)
    after = scores(real=features(100, 2), synthetic=synthetic)["precision"]
    assert before - after == pytest.approx(0.3, abs=0.06)


def test_real_outliers_inflate_recall_of_others_but_not_density():
    real = features(200, 2)
    real[:5] = 30 + features(5, 2, seed=3)  # alone, so their balls are huge: Naeem et al., figure 1
    synthetic = features(200, 2, shift=12, seed=1)
    found = scores(real=real, synthetic=synthetic)
    assert found["precision"] > 0.9
    assert found["density"] < 1.1
    assert found["coverage"] < 0.1


def test_order_does_not_matter():
    real, synthetic = features(40), features(40, shift=0.3, seed=1)
    expected = scores(real=real, synthetic=synthetic)
    assert scores(real=real[::-1], synthetic=synthetic[::-1]) == pytest.approx(expected)


def test_a_draw_of_weights_nought_and_one_is_the_chosen_rows():
    real, synthetic = features(40), features(40, shift=0.3, seed=1)
    weights = np.stack([np.ones(40), np.arange(40) % 2])
    drawn = prdc.resample(
        real=Resampled(real, np.arange(40), np.ones((2, 40))),
        synthetic=Resampled(synthetic, np.arange(40), weights),
    )
    expected = scores(real=real, synthetic=synthetic[1::2])
    assert dict(zip(expected, drawn[:, 1], strict=True)) == pytest.approx(expected)


def test_draws_scatter_about_the_estimate():
    rng = np.random.default_rng(0)
    real = resample(features(80), list(np.arange(80) // 2), num_draws=60, rng=rng)
    synthetic = resample(features(80, shift=0.4, seed=1), list(range(80)), num_draws=60, rng=rng)
    found = prdc.resample(real=real, synthetic=synthetic)
    assert found.shape == (4, 61)
    for row in found:
        assert 0 < row[1:].std() < 0.4
        assert abs(row[1:].mean() - row[0]) < 0.3


def grouped(rows, groups):
    numbers = np.asarray(groups)
    return Resampled(rows, numbers, np.ones((1, numbers.max() + 1)))


def by_definition(real, synthetic, real_groups, synthetic_groups, *, paired=False):
    """Precision, recall, density and coverage, slice by slice."""

    def radius(rows, groups, i):
        others = np.linalg.norm(rows[groups != groups[i]] - rows[i], axis=1)
        return np.sort(others)[prdc.NEAREST_K - 1]

    def meets(i, j, ball):
        apart = not paired or real_groups[i] != synthetic_groups[j]
        return apart and np.linalg.norm(real[i] - synthetic[j]) < ball

    n, m = range(len(real)), range(len(synthetic))
    balls = [radius(real, real_groups, i) for i in n]
    others = [radius(synthetic, synthetic_groups, j) for j in m]
    held = np.array([[meets(i, j, balls[i]) for j in m] for i in n])
    recalled = np.array([[meets(i, j, others[j]) for j in m] for i in n])
    return [
        held.any(axis=0).mean(),
        recalled.any(axis=1).mean(),
        held.sum(axis=0).mean() / prdc.NEAREST_K,
        held.any(axis=1).mean(),
    ]


@pytest.mark.parametrize("paired", [False, True])
def test_groups_are_left_out_as_defined(paired):
    groups = np.repeat(np.arange(8), 3)
    real = np.repeat(features(8, 3), 3, axis=0) + 0.2 * features(24, 3, seed=1)
    made = real + 0.1 * features(24, 3, seed=2) if paired else features(24, 3, seed=3)
    found = prdc.resample(
        real=grouped(real, groups), synthetic=grouped(made, groups), paired=paired
    )
    assert found[:, 0] == pytest.approx(by_definition(real, made, groups, groups, paired=paired))


def test_subjects_that_resemble_themselves_do_not_cost_precision():
    subjects, others = features(40, 4), features(120, 4, seed=2)
    groups = np.repeat(np.arange(40), 3)
    real = np.repeat(subjects, 3, axis=0) + 0.05 * features(120, 4, seed=1)
    made = Resampled.once(others)
    found = prdc.resample(real=grouped(real, groups), synthetic=made)[:, 0]
    alone = prdc.resample(real=Resampled.once(subjects), synthetic=made)[:, 0]
    counted = prdc.resample(real=Resampled.once(real), synthetic=made)[:, 0]
    assert counted[0] < 0.8 * alone[0]
    assert found[0] == pytest.approx(alone[0], abs=0.12)


def test_the_image_of_a_slice_does_not_count_for_it_in_a_pair():
    real = features(40)
    sample = Resampled.once(real), Resampled.once(real + 1e-6)
    plain, paired = (
        prdc.resample(real=sample[0], synthetic=sample[1], paired=p)[2, 0] for p in (False, True)
    )
    assert plain - paired == pytest.approx(1 / prdc.NEAREST_K)


def test_one_subject_with_nearly_all_slices_is_refused():
    rows, groups = features(12), [0] * 8 + [1, 2, 3, 4]
    with pytest.raises(SampleSizeError, match="beside those of any one group, found 4"):
        prdc.resample(real=grouped(rows, groups), synthetic=Resampled.once(rows))


def test_six_images_are_refused():
    with pytest.raises(SampleSizeError, match="prdc needs at least 7 synthetic images, found 6"):
        scores(real=features(20), synthetic=features(6))
