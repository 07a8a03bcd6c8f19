import numpy as np
import pytest

from stages.components.statistics import kernel_distance
from stages.components.statistics.bootstrap import BLOCK, Resampled, resample

D = 12


def features(n, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(loc=shift, size=(n, D))


def brute_force(real, synthetic, real_groups, synthetic_groups, v, w):
    """Average over explicit copies of groups, leaving out pairs of two copies of one group."""

    def copies(groups, weights):
        return [(row, g, c) for row, g in enumerate(groups) for c in range(int(weights[g]))]

    def within(rows, listed):
        values = [
            kernel_distance.kernel(rows[[i]], rows[[j]])[0, 0]
            for i, g, c in listed
            for j, h, e in listed
            if (g != h) or (c == e and i != j)
        ]
        return np.mean(values)

    a, b = copies(real_groups, v), copies(synthetic_groups, w)
    across = [
        kernel_distance.kernel(real[[i]], synthetic[[j]])[0, 0] for i, _, _ in a for j, _, _ in b
    ]
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


def test_first_draw_is_the_estimate_whatever_the_groups():
    rng = np.random.default_rng(0)
    real = resample(features(30), list(np.repeat(range(6), 5)), num_draws=3, rng=rng)
    synthetic = resample(features(30, 0.3, 1), list(range(30)), num_draws=3, rng=rng)
    plain = kernel_distance.compute(real=real.features, synthetic=synthetic.features)
    assert kernel_distance.resample(real=real, synthetic=synthetic)[0] == pytest.approx(
        plain, rel=1e-12
    )


def test_draws_scatter_around_the_estimate_though_slices_of_a_group_are_alike():
    rng = np.random.default_rng(1)

    def clustered(seed):
        rows = np.repeat(features(25, seed=seed), 6, axis=0)
        return rows + 0.1 * np.random.default_rng(seed + 50).normal(size=rows.shape)

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
