"""Frechet distance of two Gaussians fitted to features; `features` in the record says which.

    fid = |m_r - m_s|^2 + tr C_r + tr C_s - 2 tr (C_r C_s)^(1/2)

With C = X'X for centred rows X / sqrt(n - 1), the eigenvalues of C_r C_s are those of the symmetric
product (X_r X_s')(X_r X_s')', so the last trace is the sum of the singular values of X_r X_s': real
at any rank, and no larger than n x m. In float64 throughout. Where n exceeds d, the covariances
themselves are smaller, and `from_statistics` takes the eigenvalues of a symmetric product of them.

Its bias depends on n and on the generator, so it is compared at equal n only and stands beside
`kid`; below about as many images as features it says little, and the notes of a run say so.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017; Dowson and
Landau, "The Frechet Distance between Multivariate Normal Distributions", 1982; on the bias, Chong
and Forsyth, "Effectively Unbiased FID and Inception Score", CVPR 2020.
"""

import numpy as np

from pipeline.contracts import DISTANCE
from stages.components.statistics.bootstrap import FloatArray, Resampled
from stages.components.statistics.estimates import MetricSpec

MAX_DRAWS_LARGE = 20  # a draw takes about 2 s on one core where n exceeds d = 1280, else 0.01 s

SPEC = MetricSpec(
    key="fid",
    higher_is_better=False,
    least_n=2,
    wants_more_rows_than_features=True,
    max_draws=200,
    is_biased=True,
    names={"fid": "FID"},
    section=DISTANCE,
    citation="Frechet distance, Heusel et al., NeurIPS 2017; on the features named in the record",
)


def compute(*, real: FloatArray, synthetic: FloatArray) -> float:
    """Return the distance of features (n, d) and (m, d); deterministic.

    Raises:
        SampleSizeError: Fewer than two rows on one side.
    """
    SPEC.require(real=real, synthetic=synthetic)
    ones = (np.ones(len(real)), np.ones(len(synthetic)))
    return _distance(np.asarray(real, float), np.asarray(synthetic, float), *ones)


def resample(*, real: Resampled, synthetic: Resampled, paired: bool = False) -> FloatArray:
    """Return the distance in each draw, (1 + num_draws,); the first is the estimate itself.

    Copies of a group count as often as they are drawn, which raises the bias: intervals are centred
    on the estimate. `paired` changes nothing here, since no pairs are summed.

    Raises:
        SampleSizeError: Fewer than two rows on one side.
    """
    SPEC.require(real=real.features, synthetic=synthetic.features)
    num_features = real.features.shape[1]
    held = [(sample.row_weights > 0).sum(axis=1).max() for sample in (real, synthetic)]
    is_wide = max(held) <= num_features
    num_rows = min(len(real.weights), len(synthetic.weights))
    num_rows = min(num_rows, 1 + (SPEC.max_draws or 0 if is_wide else MAX_DRAWS_LARGE))
    weights = (real.row_weights[:num_rows], synthetic.row_weights[:num_rows])
    if not is_wide:
        return np.array(
            [
                _distance(real.features, synthetic.features, *pair)
                for pair in zip(*weights, strict=True)
            ]
        )
    origin = np.concatenate([real.features, synthetic.features]).mean(axis=0)
    a, b = real.features - origin, synthetic.features - origin  # less cancellation
    products = (a @ b.T, a @ a.T, b @ b.T)
    return np.array(
        [_distance_from_products(*products, *pair) for pair in zip(*weights, strict=True)]
    )


def from_statistics(
    real: tuple[FloatArray, FloatArray], synthetic: tuple[FloatArray, FloatArray]
) -> float:
    """Return the distance of two Gaussians, each a mean (d,) and a covariance (d, d).

    With C_r = R R' (pivoted Cholesky, so at any rank), the eigenvalues of C_r C_s are those of the
    symmetric R' C_s R: real, not negative, and found without a matrix square root. What rounding
    leaves of a zero eigenvalue would grow under the root, so it is cut off.
    """
    from scipy import linalg

    root = _root(real[1])
    product = root.T @ synthetic[1] @ root
    overlap = linalg.eigvalsh((product + product.T) / 2, overwrite_a=True, check_finite=False)
    overlap = overlap[overlap > _rounding(overlap)]
    difference = real[0] - synthetic[0]
    traces = float(np.trace(real[1]) + np.trace(synthetic[1]))
    return float(difference @ difference) + traces - 2.0 * float(np.sqrt(overlap).sum())


def _root(covariance: FloatArray) -> FloatArray:
    """Return R (d, rank) with C = R R'; a tenth of the work of C's eigenvectors."""
    from scipy.linalg import lapack

    factor, order, rank, _ = lapack.dpstrf(covariance, lower=1)
    root: FloatArray = np.zeros((len(covariance), rank))
    root[order - 1] = np.tril(factor)[:, :rank]
    return root


def _rounding(values: FloatArray) -> float:
    return float(np.max(values, initial=0.0)) * len(values) * float(np.finfo(np.float64).eps)


def _distance(
    real: FloatArray, synthetic: FloatArray, real_weights: FloatArray, weights: FloatArray
) -> float:
    from scipy import linalg

    mean_real, x_real = _centre(real, real_weights)
    mean_synthetic, x_synthetic = _centre(synthetic, weights)
    if max(len(x_real), len(x_synthetic)) > x_real.shape[1]:
        statistics = (mean_real, x_real.T @ x_real), (mean_synthetic, x_synthetic.T @ x_synthetic)
        return from_statistics(*statistics)
    overlap = linalg.svdvals(x_real @ x_synthetic.T, overwrite_a=True, check_finite=True)
    difference = mean_real - mean_synthetic
    traces = float((x_real**2).sum() + (x_synthetic**2).sum())
    return float(difference @ difference) + traces - 2.0 * float(overlap.sum())


def _distance_from_products(
    across: FloatArray, real: FloatArray, synthetic: FloatArray, v: FloatArray, w: FloatArray
) -> float:
    """Return the distance from products r_i . s_j, r_i . r_j, s_i . s_j and the rows' weights.

    A draw then costs one singular value decomposition of the rows that it holds, and no features.
    """
    from scipy import linalg

    p, q = v / v.sum(), w / w.sum()
    to_mean_synthetic, to_mean_real = across @ q, p @ across  # r_i . m_s and m_r . s_j
    between = float(p @ to_mean_synthetic)
    real_mean, synthetic_mean = float(p @ real @ p), float(q @ synthetic @ q)
    centred = across - to_mean_synthetic[:, None] - to_mean_real[None, :] + between
    centred *= np.sqrt(v / (v.sum() - 1))[:, None] * np.sqrt(w / (w.sum() - 1))[None, :]
    overlap = linalg.svdvals(centred[np.ix_(v > 0, w > 0)], overwrite_a=True)
    trace_real = (float(v @ np.diag(real)) - v.sum() * real_mean) / (v.sum() - 1)
    trace_synthetic = (float(w @ np.diag(synthetic)) - w.sum() * synthetic_mean) / (w.sum() - 1)
    shift = real_mean + synthetic_mean - 2 * between
    return float(shift + trace_real + trace_synthetic - 2 * overlap.sum())


def _centre(rows: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the mean (d,) and a root X (k, d) with C = X'X of the k rows held by weights."""
    rows, weights = rows[weights > 0], weights[weights > 0]
    count = float(weights.sum())
    mean: FloatArray = weights @ rows / count
    root: FloatArray = (rows - mean) * np.sqrt(weights / (count - 1))[:, None]
    return mean, root
