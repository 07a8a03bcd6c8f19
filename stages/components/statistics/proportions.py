"""Proportions: intervals of shares and of their differences, and cuts chosen on labelled data.

Slices of one subject are not independent: at a correlation of 0.3 within subjects of 8 slices,
Wilson's interval of the slices covers the true share in 0.74 of samples in place of 0.95. What is
known is how much a share varies over draws of whole groups. Its interval is therefore Wilson's on
the *effective* sample size, that of independent slices whose share would vary as much, with a
quantile of t for as many groups. Percentiles of the same draws cover less (0.88 at a share of 0.95
of 28 groups, here 0.92), and at 0 or 1 the draws say nothing.

Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927;
Kish, "Survey Sampling", 1965 (design effect); Korn and Graubard, "Confidence intervals for
proportions with small expected number of positive counts estimated from survey data", Survey
Methodology 1998 (effective sample size, t); Dean and Pagano, "Evaluating confidence interval
methods for binomial proportions in clustered surveys", J. Surv. Stat. Methodol. 2015 (Wilson's).
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import FloatArray

THRESHOLD = 0.5  # probability from which a slice counts as "tumour"
SAME = 1e-9  # shares nearer to each other are equal
BoolArray: TypeAlias = NDArray[np.bool_]
Interval: TypeAlias = tuple[float | None, float | None]


def wilson(successes: float, count: int, *, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; `successes` may be a mean over runs.

    Raises:
        SampleSizeError: `count` is 0.
    """
    from scipy.stats import norm

    if count < 1:
        raise SampleSizeError(f"a proportion needs at least 1 slice, found {count}")
    return _wilson(successes / count, count, float(norm.ppf(0.5 + confidence / 2)))


def share_interval(
    values: FloatArray, *, count: int, num_groups: int, confidence: float
) -> Interval:
    """Return the interval of a share; (None, None) without draws or for a single group.

    Args:
        values: The share, itself and in each draw of groups, (1 + num_draws,); draws in which it is
            not defined (NaN) are left out.
        count: Slices (images, pairs) that it is a share of.
        num_groups: Groups that they are of.
        confidence: In (0, 1).
    """
    draws = values[1:][np.isfinite(values[1:])]
    if not len(draws) or num_groups < 2:
        return None, None
    share = float(values[0])
    size = effective_size(values, count=count, num_groups=num_groups)
    return _wilson(share, size, _t_quantile(num_groups, confidence))


def effective_size(values: FloatArray, *, count: int, num_groups: int) -> float:
    """Return how many independent slices would make a share vary as its draws do.

    At most `count`. As far as draws stick at 0 or 1 they tell nothing of groups, so slices of one
    group are taken for one: at 0 and 1 it is `num_groups`. Arguments as for `share_interval`.
    """
    draws, share = values[1:][np.isfinite(values[1:])], float(values[0])
    stuck = float(np.mean((draws < SAME) | (draws > 1 - SAME)))
    spread = share * (1 - share)
    inverse = _variance(draws, num_groups) / spread if spread > SAME else 0.0
    return 1 / max(inverse, stuck / num_groups, 1 / count)


def difference_interval(values: FloatArray, *, num_groups: int, confidence: float) -> Interval:
    """Return the interval of a difference of two shares of the same groups; see `share_interval`.

    It is that of t around the difference, by its spread over draws. As far as draws repeat the
    difference (to a tenth of what one group makes of it) they tell nothing, and then at most so
    many groups differ otherwise as Wilson's interval of none of them allows.
    """
    draws = values[1:][np.isfinite(values[1:])]
    if not len(draws) or num_groups < 2:
        return None, None
    difference = float(values[0])
    t = _t_quantile(num_groups, confidence)
    repeated = float(np.mean(np.abs(draws - difference) < 0.1 / num_groups))
    unseen = _wilson(0.0, num_groups, t)[1] * np.sqrt(repeated)
    half = max(t * np.sqrt(_variance(draws, num_groups)), float(unseen))
    return max(-1.0, difference - half), min(1.0, difference + half)


def _wilson(share: float, size: float, quantile: float) -> tuple[float, float]:
    square = quantile**2
    centre = (share + square / (2 * size)) / (1 + square / size)
    spread = share * (1 - share) / size + square / (4 * size**2)
    half = float(quantile / (1 + square / size) * np.sqrt(spread))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return min(low, share), max(high, share)  # at 0 and 1 rounding would leave the share outside


def _t_quantile(num_groups: int, confidence: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, num_groups - 1))


def _variance(draws: FloatArray, num_groups: int) -> float:
    """Return the variance of a sample's statistic; draws of G groups vary by (G - 1) / G of it."""
    return float(draws.var()) * num_groups / (num_groups - 1)


def choose_cut(
    probability: FloatArray, is_tumor: BoolArray, target_sensitivity: float | None
) -> float | None:
    """Choose the operating point of a run on validation slices; None where one kind is lacking.

    Args:
        probability: Of a tumour, (n,).
        is_tumor: The truth, (n,).
        target_sensitivity: The highest cut that keeps this sensitivity; None: the largest sum of
            sensitivity and specificity (Youden), of equals the one nearest to 0.5. Cuts lie midway
            between probabilities that occur.
    """
    if is_tumor.all() or not is_tumor.any():
        return None
    cuts, sensitivity, specificity = _operating_points(probability, is_tumor)
    if target_sensitivity is not None:
        return float(cuts[sensitivity >= target_sensitivity].max())
    youden = sensitivity + specificity
    best = cuts[youden >= youden.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - THRESHOLD))])


def choose_even_cut(probability: FloatArray, is_tumor: BoolArray) -> float | None:
    """Choose the cut of equal error rates, which misses tumours as often as it invents them.

    It varies less from sample to sample than Youden's, which may lie anywhere on a flat top. The
    middle of equals; None where one kind is lacking. Arguments as for `choose_cut`.

    Example:
        >>> surest = np.array([0.1, 0.2, 0.6, 0.5, 0.8, 0.9])
        >>> choose_even_cut(surest, np.array([False, False, False, True, True, True]))
        0.55
    """
    if is_tumor.all() or not is_tumor.any():
        return None
    cuts, sensitivity, specificity = _operating_points(probability, is_tumor)
    gaps = np.abs(sensitivity - specificity)
    best = cuts[gaps <= gaps.min() + 1e-12]
    return float(best[len(best) // 2])


def _operating_points(
    probability: FloatArray, is_tumor: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return all cuts that differ, midway between probabilities, with both rates of each."""
    levels = np.unique(np.concatenate([[0.0, 1.0], probability]))
    cuts = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2])
    called = probability >= cuts[:, None]
    return cuts, called[:, is_tumor].mean(axis=1), (~called)[:, ~is_tumor].mean(axis=1)
