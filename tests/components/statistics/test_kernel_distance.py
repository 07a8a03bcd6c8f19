import numpy as np
import pytest

from pipeline.errors import SampleSizeError
from stages.components.statistics import kernel_distance
from stages.components.statistics.bootstrap import BLOCK, Resampled, resample

D = 12


def features(n, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(loc=shift, size=(n, D))


def brute_force(real, synthetic, real_groups, synthetic_groups, v, w):
    """Average over explicit copies of groups, leaving out pairs of one group, copies or not."""

    def copies(groups, weights):
        return [(row, g) for row, g in enumerate(groups) for _ in range(int(weights[g]))]

    def within(rows, listed):
        values = [
            kernel_distance.kernel(rows[[i]], rows[[j]])[0, 0]
            for i, g in listed
            for j, h in listed
            if g != h
        ]
        return np.mean(values)

    a, b = copies(real_groups, v), copies(synthetic_groups, w)
    across = [kernel_distance.kernel(real[[i]], synthetic[[j]])[0, 0] for i, _ in a for j, _ in b]
    return within(real, a) + within(synthetic, b) - 2 * np.mean(across)


def test_equals_the_definition():
    real, synthetic = features(7), features(5, 0.3, seed=1)
    expected = brute_force(real, synthetic, range(7), range(5), np.ones(7), np.ones(5))
    assert kernel_distance.compute(real=real, synthetic=synthetic) == pytest.approx(
        expected, rel=1e-12
    )


def test_equals_torchmetrics():
    torch = pytest.importorskip("torch")
    from torchmetrics.image.kid import poly_mmd

    real, synthetic = features(60), features(60, 0.2, seed=1)
    r, s = torch.from_numpy(real), torch.from_numpy(synthetic)
    expected = poly_mmd(r, s)
    found = kernel_distance.compute(real=real, synthetic=synthetic)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_draws_equal_explicit_copies():
    rng = np.random.default_rng(5)
    groups, other = [0, 0, 1, 2, 2, 2, 3, 4], [0, 1, 1, 2, 3, 4]
    real = resample(features(8), groups, num_draws=6, rng=rng)
    synthetic = resample(features(6, 0.4, seed=2), other, num_draws=6, rng=rng)
    assert len(real.weights) == len(synthetic.weights) == 7
    found = kernel_distance.resample(real=real, synthetic=synthetic)
    for row, value in enumerate(found):
        v, w = real.weights[row], synthetic.weights[row]
        expected = brute_force(real.features, synthetic.features, groups, other, v, w)
        assert value == pytest.approx(expected, rel=1e-10)


def clustered(seed, num_groups=25, size=6, spread=0.1):
    rows = np.repeat(features(num_groups, seed=seed), size, axis=0)
    return rows + spread * np.random.default_rng(seed + 50).normal(size=rows.shape)


def test_groups_of_one_are_the_published_estimate():
    real, synthetic = features(30), features(20, 0.3, 1)
    rng = np.random.default_rng(0)
    drawn = [resample(x, list(range(len(x))), num_draws=3, rng=rng) for x in (real, synthetic)]
    found = kernel_distance.resample(real=drawn[0], synthetic=drawn[1])[0]
    plain = kernel_distance.compute(real=real, synthetic=synthetic)
    assert found == pytest.approx(plain, rel=1e-12)


def test_slices_of_one_subject_do_not_make_a_distance():
    rng = np.random.default_rng(0)
    groups = list(np.repeat(range(8), 6))
    between, counted = [], []
    for seed in range(200):
        real, synthetic = clustered(seed, 8), clustered(seed + 1000, 8)
        drawn = [resample(x, groups, num_draws=0, rng=rng) for x in (real, synthetic)]
        between.append(kernel_distance.resample(real=drawn[0], synthetic=drawn[1])[0])
        counted.append(kernel_distance.compute(real=real, synthetic=synthetic))
    assert abs(np.mean(between)) < 3 * np.std(between) / np.sqrt(200)
    assert np.mean(counted) > 10 * np.std(counted) / np.sqrt(200)


@pytest.mark.parametrize("side", ["real", "synthetic"])
def test_slices_of_one_group_are_refused(side):
    one = Resampled(features(4), np.zeros(4, dtype=np.intp), np.ones((1, 1)))
    sides = {"real": Resampled.once(features(4)), "synthetic": Resampled.once(features(4))}
    with pytest.raises(SampleSizeError, match=rf"at least 2, found 1 \({side}, 4 images\)"):
        kernel_distance.resample(**{**sides, side: one})


def test_draws_scatter_around_the_estimate_though_slices_of_a_group_are_alike():
    rng = np.random.default_rng(1)

    groups = list(np.repeat(range(25), 6))
    real, synthetic = (resample(clustered(s), groups, num_draws=300, rng=rng) for s in (1, 2))
    values = kernel_distance.resample(real=real, synthetic=synthetic)
    error = values[1:].std() / np.sqrt(300)
    assert abs(values[1:].mean() - values[0]) < 0.35 * values[1:].std() + 3 * error


def test_a_sample_paired_with_itself_is_at_no_distance_in_any_draw():
    rng = np.random.default_rng(2)
    real = resample(features(20), list(np.repeat(range(10), 2)), num_draws=50, rng=rng)
    found = kernel_distance.resample(real=real, synthetic=real, paired=True)
    assert found == pytest.approx(np.zeros(51), abs=1e-10)


def test_paired_samples_leave_out_a_slice_and_its_own_image():
    real = features(6)
    made = real + 0.5 * features(6, seed=1)
    sample = Resampled.once(real), Resampled.once(made)
    apart = ~np.eye(6, dtype=bool)
    expected = (
        kernel_distance.kernel(real, real)[apart].mean()
        + kernel_distance.kernel(made, made)[apart].mean()
        - 2 * kernel_distance.kernel(real, made)[apart].mean()
    )
    found = kernel_distance.resample(real=sample[0], synthetic=sample[1], paired=True)[0]
    assert found == pytest.approx(expected, rel=1e-12)


def test_paired_samples_leave_out_images_of_one_subject():
    real, groups = features(6), np.array([0, 0, 1, 1, 2, 2])
    made = real + 0.5 * features(6, seed=1)
    apart = groups[:, None] != groups
    expected = (
        kernel_distance.kernel(real, real)[apart].mean()
        + kernel_distance.kernel(made, made)[apart].mean()
        - 2 * kernel_distance.kernel(real, made)[apart].mean()
    )
    drawn = [Resampled(rows, groups, np.ones((1, 3))) for rows in (real, made)]
    found = kernel_distance.resample(real=drawn[0], synthetic=drawn[1], paired=True)[0]
    assert found == pytest.approx(expected, rel=1e-12)


def test_paired_draws_are_unbiased_where_slices_depend_on_each_other():
    values, plain = [], []
    for seed in range(300):
        real = features(8, seed=seed)
        sample = Resampled.once(real), Resampled.once(-real)  # the same distribution
        values.append(kernel_distance.resample(real=sample[0], synthetic=sample[1], paired=True)[0])
        plain.append(kernel_distance.compute(real=real, synthetic=-real))
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    assert abs(np.mean(plain)) > 3 * np.std(plain) / np.sqrt(300)


def test_same_distribution_gives_about_zero_and_a_larger_shift_more():
    real = features(300)
    near, mid, far = (
        kernel_distance.compute(real=real, synthetic=features(300, shift, seed=9))
        for shift in (0, 0.3, 0.6)
    )
    assert abs(near) < 0.02
    assert near < mid < far


def test_unbiased_over_samples_of_one_distribution():
    values = [
        kernel_distance.compute(real=features(10, seed=s), synthetic=features(10, seed=s + 1000))
        for s in range(400)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20


def test_more_rows_than_a_block_holds_have_the_value_of_the_definition():
    real, synthetic = features(BLOCK + 9), features(BLOCK + 5, 0.2, 1)

    def within(rows):
        values = kernel_distance.kernel(rows, rows)
        return (values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1))

    across = kernel_distance.kernel(real, synthetic).mean()
    expected = within(real) + within(synthetic) - 2 * across
    found = kernel_distance.compute(real=real, synthetic=synthetic)
    assert found == pytest.approx(expected, rel=1e-9)


def test_order_of_images_does_not_matter():
    real, synthetic = features(20), features(20, 0.2, 1)
    expected = kernel_distance.compute(real=real, synthetic=synthetic)
    found = kernel_distance.compute(real=real[::-1], synthetic=synthetic[::-1])
    assert found == pytest.approx(expected, rel=1e-12)


def test_intervals_of_paired_differences_hold_the_truth_as_often_as_they_say():
    """Two arms with prompts and seeds in common, the second worse; 24 subjects of 3 slices."""
    groups, prompts = list(np.repeat(range(24), 3)), list(range(60))
    values, covered, ratios = [], [], []
    for seed in range(240):
        rng = np.random.default_rng(seed)
        real = np.repeat(rng.normal(size=(24, 3)), 3, axis=0) + 0.5 * rng.normal(size=(72, 3))
        shared = rng.normal(size=(60, 3))
        arms = [0.3 + k * 0.3 + shared + 0.3 * rng.normal(size=(60, 3)) for k in (0, 1)]
        panel = resample(real, groups, num_draws=200, rng=rng)

        def differ(same, panel=panel, arms=arms, seed=seed):
            scores = [
                kernel_distance.resample(
                    real=panel,
                    synthetic=resample(
                        rows,
                        prompts,
                        num_draws=200,
                        rng=np.random.default_rng(9 if same else (seed, k)),
                        pool=prompts,
                    ),
                )
                for k, rows in enumerate(arms)
            ]
            return scores[1] - scores[0]

        paired, apart = differ(True), differ(False)
        values.append(paired[0])
        covered.append(np.quantile(paired[1:], [0.025, 0.975]))
        ratios.append(apart[1:].std() / paired[1:].std())
    truth = np.mean(values)  # the estimator is unbiased
    hits = [low <= truth <= high for low, high in covered]
    assert 0.90 <= np.mean(hits) <= 0.98  # 0.95 with a standard error of 0.014
    assert np.median(ratios) > 1.1
