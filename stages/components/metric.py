"""What a metric plug-in declares and does; light enough to be read before anything is loaded."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.errors import SampleSizeError
from stages.components.bootstrap import FloatArray, Resampled


@dataclass(frozen=True)
class MetricSpec:
    """A metric on two sets of features: its name, direction and needs.

    `is_biased`: its bias grows as a draw holds fewer distinct images, so that its interval is
    centred on the estimate. `max_draws`: no more are taken, because one is slow.
    """

    key: str
    higher_is_better: bool
    least_n: int
    citation: str
    wants_more_rows_than_features: bool = False
    is_biased: bool = False
    max_draws: int | None = None

    def require(self, *, real: FloatArray, synthetic: FloatArray) -> None:
        """Refuse samples that are too small.

        Raises:
            SampleSizeError: A side has fewer than `least_n` rows.
        """
        for side, rows in (("real", real), ("synthetic", synthetic)):
            if len(rows) < self.least_n:
                raise SampleSizeError(
                    f"{self.key} needs at least {self.least_n} {side} images, found {len(rows)}; "
                    "add images, or leave the metric out"
                )

    def advise(self, *, n: int, num_features: int) -> str | None:
        """Say where n is allowed but small; None where it is enough."""
        if self.wants_more_rows_than_features and n <= num_features:
            return (
                f"{self.key} at n = {n} on {num_features} features: the covariance is "
                "rank-deficient and the bias large; compare at equal n only, and read kid first"
            )
        return None


class Metric(Protocol):
    """The functions of a metric's module."""

    SPEC: MetricSpec

    def compute(
        self, *, real: FloatArray, synthetic: FloatArray, rng: np.random.Generator | None = None
    ) -> float:
        """Return the score of features (n, d) and (m, d)."""

    def resample(
        self, *, real: Resampled, synthetic: Resampled, paired: bool = False
    ) -> FloatArray:
        """Return the score in each draw; the first is the estimate itself."""
