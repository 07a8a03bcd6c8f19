"""Shortcut baselines: logistic regression on a few numbers per slice."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import SliceRecord
from pipeline.errors import TrainingError

Predictor: TypeAlias = Callable[
    [Sequence[SliceRecord], NDArray[np.uint8]], NDArray[np.float64]
]  # slices and their pixels (n, size, size) to probabilities of a tumour (n,)


def fit_logistic(
    name: str,
    describe: Predictor,
    records: Sequence[SliceRecord],
    images: NDArray[np.uint8],
    is_tumor: NDArray[np.bool_],
) -> Predictor:
    """Fit logistic regression on standardised numbers, C = 1; deterministic.

    Args:
        name: Of the baseline, for messages.
        describe: Slices and pixels to numbers (n, d).
        records: Training slices.
        images: Their pixels, uint8 (n, size, size).
        is_tumor: Their class, (n,).

    Raises:
        TrainingError: All slices are of one kind.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(is_tumor.tolist())) < 2:
        raise TrainingError(
            f"{name} needs slices with and without a tumour, found {len(is_tumor)} of one kind; "
            "add the other to the source"
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(describe(records, images), is_tumor)

    def predict(records: Sequence[SliceRecord], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.asarray(model.predict_proba(describe(records, images))[:, 1], dtype=np.float64)

    return predict
