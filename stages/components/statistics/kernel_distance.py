"""The unbiased squared maximum mean discrepancy of two samples of features, on the full samples.

    d = mean_{g_i != g_j} k(r_i, r_j) + mean_{h_i != h_j} k(s_i, s_j) - 2 mean_{i, j} k(r_i, s_j)
    k(a, b) = (a . b / num_features + 1)^3

with g and h the groups (subjects) of real and synthetic slices. Slices of one subject resemble each
other more than slices of two, so their pairs say how alike a subject is to itself and not how wide
the distribution is: counted in, they made the distance of phantom slices 0.004 too large over
all classes and 0.016 within one, at 7 slices a subject. Where every slice is its own group, all
pairs i != j count, as published.

No subsets: their spread says little where a subset is the sample. It is unbiased at any n, so it
may be negative where two samples come from one distribution. Everything in float64.

Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018; Gretton et al., "A Kernel Two-Sample
Test", JMLR 2012, lemma 6, whose samples are independent: across groups, that is.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import BLOCK, FloatArray, Resampled


def kernel(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return k(a_i, b_j), (n, m), of rows (n, d) and (m, d)."""
    product: FloatArray = a @ b.T / a.shape[1] + 1.0
    return product * product * product


def compute(*, real: FloatArray, synthetic: FloatArray) -> float:
    """Return the distance of features (n, d) and (m, d), at least two rows each; deterministic."""
    return float(resample(real=Resampled.once(real), synthetic=Resampled.once(synthetic))[0])


def resample(*, real: Resampled, synthetic: Resampled, paired: bool = False) -> FloatArray:
    """Return the distance in each draw, (1 + num_draws,); the first is the estimate itself.

    `paired`: row i of both samples shows the same slice (real, and passed through a VAE), and the
    weights are shared. A slice and an image of its own group are not independent, so those pairs
    are left out of the last mean too (Gretton et al., equation 4). Left in, the n pairs of a slice
    and its own image alone made the distance 0.002 too small for Kaggle slices at n = 300.

    Raises:
        SampleSizeError: All rows of one side are of one group.
    """
    for side, sample in (("real", real), ("synthetic", synthetic)):
        if sample.weights.shape[1] < 2:
            raise SampleSizeError(
                f"pairs between groups need images of at least 2, found 1 ({side}, "
                f"{len(sample.features)} images)"
            )
    within = _mean_apart(real, real) + _mean_apart(synthetic, synthetic)
    across = _mean_apart(real, synthetic) if paired else _mean_across(real, synthetic)
    distances: FloatArray = within - 2 * across
    return distances


def _mean_across(real: Resampled, synthetic: Resampled) -> FloatArray:
    """Average k(r_i, s_j) over all pairs."""
    pairs = real.row_weights.sum(axis=1) * synthetic.row_weights.sum(axis=1)
    mean: FloatArray = _sum_pairs(real, synthetic) / pairs
    return mean


def _mean_apart(a: Resampled, b: Resampled) -> FloatArray:
    """Average k(a_i, b_j) over pairs of two groups.

    Both samples have the same groups and weights; they may be one. Two copies of a group that was
    drawn twice are of one group, so draws scatter around the estimate instead of above it.
    """
    sizes = np.bincount(a.groups).astype(np.float64)
    w = a.weights
    total = _sum_pairs(a, b) - w**2 @ _sum_blocks(a.features, b.features, a.groups)
    mean: FloatArray = total / ((w @ sizes) ** 2 - w**2 @ sizes**2)
    return mean


def _sum_pairs(a: Resampled, b: Resampled) -> FloatArray:
    """Sum k(a_i, b_j), weighted, over all pairs; a block of rows at a time."""
    rows, columns = a.row_weights, b.row_weights
    total = np.zeros(len(rows))
    for start in range(0, len(a.features), BLOCK):
        part = slice(start, start + BLOCK)
        total += ((rows[:, part] @ kernel(a.features[part], b.features)) * columns).sum(axis=1)
    return total


def _sum_blocks(a: FloatArray, b: FloatArray, groups: NDArray[np.intp]) -> FloatArray:
    """Sum k(a_i, b_j) over the pairs of each group, (num_groups,)."""
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return np.array([kernel(a[rows], b[rows]).sum() for rows in members])
