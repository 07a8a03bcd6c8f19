"""Proportions: Wilson intervals, and cuts of a score chosen on labelled data."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import FloatArray

THRESHOLD = 0.5  # probability from which a slice counts as "tumour"
BoolArray: TypeAlias = NDArray[np.bool_]


def wilson(successes: float, count: int, *, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; `successes` may be a mean over runs.

    Raises:
        SampleSizeError: `count` is 0.
    """
    from scipy.stats import norm

    if count < 1:
        raise SampleSizeError(f"a proportion needs at least 1 slice, found {count}")
    z = float(norm.ppf(0.5 + confidence / 2))
    share = successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = max(0.0, centre - float(half)), min(1.0, centre + float(half))
    return min(low, share), max(high, share)  # at 0 and 1 rounding would leave the share outside


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
