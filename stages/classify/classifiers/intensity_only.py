"""Shortcut baseline: what four intensity statistics of a slice say about its class.

Logistic regression on mean, standard deviation, median and 95th percentile of the grey values, and
on their squares and products. It knows no place and no shape: where it scores well, brightness and
contrast give the class away.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Section, SliceRecord
from stages.classify.baseline import Predictor, fit_logistic


class Settings(Section):
    pass


def fit(
    *, records: Sequence[SliceRecord], images: NDArray[np.uint8], targets: NDArray[np.intp]
) -> Predictor:
    """Fit on training slices, uint8 (n, size, size). Deterministic.

    Raises:
        TrainingError: All slices are of one kind.
    """
    return fit_logistic("intensity_only", describe, records, images, targets)


def describe(records: Sequence[SliceRecord], images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return mean, standard deviation, median, 95th percentile, squares and products: (n, 14)."""
    flat = images.reshape(len(images), -1)
    statistics = np.stack(
        [
            flat.mean(axis=1),
            flat.std(axis=1),
            np.median(flat, axis=1),
            np.percentile(flat, 95, axis=1),
        ],
        axis=1,
    )
    first, second = np.triu_indices(statistics.shape[1])
    scaled = statistics / 255.0
    return np.concatenate([scaled, scaled[:, first] * scaled[:, second]], axis=1)
