"""Estimates: a score's value with its interval, and what the score is (its specification)."""

from dataclasses import dataclass

from stages.components.metric import MetricSpec
from stages.components.statistics.bootstrap import FloatArray, interval


@dataclass(frozen=True)
class Estimate:
    """A metric of one arm: its value, its interval and its draws (num_draws,)."""

    spec: MetricSpec
    value: float
    low: float | None
    high: float | None
    draws: FloatArray
    n_real: int
    n_synthetic: int
    p: float | None = None


def make_estimate(
    spec: MetricSpec, values: FloatArray, *, confidence: float, n_real: int, n_synthetic: int
) -> Estimate:
    """Build an estimate from (1 + num_draws,) values, the first of them the estimate itself."""
    value, draws = float(values[0]), values[1:]
    low, high = interval(draws, confidence=confidence, centre=value if spec.is_biased else None)
    if spec.key in spec.limits and low is not None and high is not None:
        least, most = spec.limits[spec.key]
        low, high = max(least, min(low, value)), min(most, max(high, value))
    return Estimate(spec, value, low, high, draws, n_real, n_synthetic)
