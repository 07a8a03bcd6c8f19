"""Shortcut baseline: what the size of the original file alone says about its class.

Logistic regression on log width, log height and aspect, and on whether the file has one of the
exact sizes that the training slices share. It never sees a pixel: where it scores well, class and
source are confounded, and a classifier's accuracy means little.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Section, SliceRecord
from stages.classify.baseline import Predictor, fit_logistic

MIN_SHARED = 5  # training slices of one exact size before it counts as a mark


class Settings(Section):
    pass


def fit(
    *, records: Sequence[SliceRecord], images: NDArray[np.uint8], targets: NDArray[np.intp]
) -> Predictor:
    """Fit on training slices; `images` (n, size, size) are not looked at. Deterministic.

    Raises:
        TrainingError: All slices are of one kind.
    """
    sizes = Counter((r.original_width_px, r.original_height_px) for r in records)
    marks = sorted(size for size, count in sizes.items() if count >= MIN_SHARED)
    return fit_logistic("metadata_only", _describe(marks), records, images, targets)


def _describe(
    marks: Sequence[tuple[int, int]],
) -> Callable[[Sequence[SliceRecord], NDArray[np.uint8]], NDArray[np.float64]]:
    def describe(records: Sequence[SliceRecord], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (n, 3 + marks)."""
        rows: list[list[Any]] = []
        for record in records:
            width, height = record.original_width_px, record.original_height_px
            shape = [np.log(width), np.log(height), np.log(width / height)]
            rows.append([*shape, *((width, height) == mark for mark in marks)])
        return np.asarray(rows, dtype=np.float64)

    return describe
