"""Shortcut baselines: logistic regression on a few numbers per slice."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import SliceRecord
from pipeline.errors import TrainingError

Describer: TypeAlias = Callable[
    [Sequence[SliceRecord], NDArray[np.uint8]], NDArray[np.float64]
]  # slices and their pixels to numbers (n, d)
Predictor: TypeAlias = Callable[
    [Sequence[SliceRecord], NDArray[np.uint8]], NDArray[np.float64]
]  # slices and their pixels (n, size, size) to probabilities of each class (n, class)


def fit_logistic(
    name: str,
    describe: Describer,
    records: Sequence[SliceRecord],
    images: NDArray[np.uint8],
    targets: NDArray[np.intp],
) -> Predictor:
    """Fit logistic regression on standardised numbers, C = 1; deterministic.

    Args:
        name: Of the baseline, for messages.
        describe: Slices and pixels to numbers (n, d).
        records: Training slices.
        images: Their pixels, uint8 (n, size, size).
        targets: The number of their class, (n,), from 0 without a gap.

    Raises:
        TrainingError: All slices are of one kind.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(targets.tolist())) < 2:
        raise TrainingError(
            f"{name} needs slices with and without a tumour, found {len(targets)} of one kind; "
            "add the other to the source"
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(describe(records, images), targets)

    def predict(records: Sequence[SliceRecord], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.asarray(model.predict_proba(describe(records, images)), dtype=np.float64)

    return predict
