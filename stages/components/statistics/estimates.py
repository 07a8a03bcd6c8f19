"""Estimates: a score's value with its interval, and what the score is (its specification).

The interval of a share is `proportions.share_interval`, that of any other score its percentiles
over draws of groups. None has no width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import OTHER_SCORES, ScoreStyle
from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import FloatArray, interval
from stages.components.statistics.proportions import share_interval


@dataclass(frozen=True)
class MetricSpec:
    """A metric: its name, direction and needs.

    `scores`: names and directions where one metric gives several numbers. `features`: the only
    network that it is defined on. `least_n_per_feature`: refused below that many images per
    feature; `advised_n`: warned of below. `is_biased`: its bias grows as a draw holds fewer
    distinct images, so that its interval is centred on the estimate. `max_draws`: no more are
    taken, because one is slow. `limits`: least and greatest possible value of a score, which no
    interval leaves, though it is centred on an estimate that lies there.

    The rest says how a page shows the scores: `names` of them for readers (else the key in words),
    `is_share`: as percentages, `digits` after the point, and the `section` that they stand in.
    """

    key: str
    higher_is_better: bool
    least_n: int
    citation: str
    scores: tuple[tuple[str, bool], ...] = ()
    kind: Literal["pair", "sample"] = "pair"
    features: str | None = None
    least_n_per_feature: float = 0.0
    advised_n: int = 0
    wants_more_rows_than_features: bool = False
    is_biased: bool = False
    max_draws: int | None = None
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    is_share: bool = False
    digits: int | None = None
    section: str = OTHER_SCORES

    def each(self) -> "tuple[MetricSpec, ...]":
        """Return one spec for every number that the metric gives, in its order."""
        if not self.scores:
            return (self,)
        return tuple(replace(self, key=k, higher_is_better=h, scores=()) for k, h in self.scores)

    def style(self) -> ScoreStyle:
        """Say how the score of this key is shown."""
        return ScoreStyle(
            name=self.names.get(self.key, ""),
            is_share=self.is_share,
            digits=self.digits,
            section=self.section,
        )

    def require(self, *, real: NDArray[Any], synthetic: NDArray[Any]) -> None:
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

    def refuse(self, *, n: int, num_features: int) -> str | None:
        """Say why the metric is not computed at n images; None where it is."""
        least = max(self.least_n, int(np.ceil(self.least_n_per_feature * num_features)))
        if n >= least:
            return None
        return f"{self.key} needs at least {least} images a side on {num_features} features"

    def advise(self, *, n: int, num_features: int) -> str | None:
        """Say where n is allowed but small; None where it is enough."""
        if self.wants_more_rows_than_features and n <= num_features:
            return (
                f"{self.key} at n = {n} on {num_features} features: the covariance is "
                "rank-deficient and the bias large; compare at equal n only, and read kid first"
            )
        if n < self.advised_n:
            return f"{self.key} at n = {n}: below {self.advised_n} images a side it says little"
        return None


@dataclass(frozen=True)
class Estimate:
    """A metric of one arm: its value, its interval and its draws (num_draws,).

    `num_groups`: what the draws drew whole, subjects of real slices or prompts; None without them.
    `num_negative_groups`: of these, groups without a tumour, where that is what is scored.
    """

    spec: MetricSpec
    value: float
    low: float | None
    high: float | None
    draws: FloatArray
    n_real: int
    n_synthetic: int
    p: float | None = None
    num_groups: int | None = None
    num_negative_groups: int | None = None


def make_estimate(
    spec: MetricSpec,
    values: FloatArray,
    *,
    num_groups: int,
    confidence: float,
    n_real: int,
    n_synthetic: int,
) -> Estimate:
    """Build an estimate from (1 + num_draws,) values, the first of them the estimate itself.

    Args:
        spec: Of the score.
        values: In each draw; those in which it is not defined are NaN.
        num_groups: What was drawn whole.
        confidence: Of the interval.
        n_real: Real slices behind it.
        n_synthetic: Generated images behind it; 0: it is of real slices alone.
    """
    value, draws = float(values[0]), values[1:]
    least, most = spec.limits.get(spec.key, (-np.inf, np.inf))
    known = draws[np.isfinite(draws)]
    low, high = interval(known, confidence=confidence, centre=value if spec.is_biased else None)
    if low is not None and high is not None:
        low, high = max(least, min(low, value)), min(most, max(high, value))
    if low == high:
        low = high = None
    if spec.is_share or (low is None and (least, most) == (0.0, 1.0)):
        low, high = share_interval(
            values, count=n_synthetic or n_real, num_groups=num_groups, confidence=confidence
        )
    return Estimate(spec, value, low, high, draws, n_real, n_synthetic, num_groups=num_groups)


LUMA = "luma"  # stands in `MetricSpec.features` for the slices' own brightness, (n, size * size)
