"""Panels: one reference sample and its bootstrap draws, shared by all that is scored against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline import registry
from pipeline.seeding import numpy_rng
from stages.components.statistics.bootstrap import FloatArray, Resampled, resample
from stages.components.statistics.estimates import Estimate, MetricSpec, make_estimate
from stages.evaluate.metric import Metric, SampleMetric


def load_metric(name: str) -> Metric | SampleMetric:
    """Find a metric by its plug-in's name.

    Raises:
        UnknownPluginError: No such plug-in.
    """
    return cast("Metric | SampleMetric", registry.find(registry.METRICS, name))


@dataclass(frozen=True)
class Panel:
    """One reference sample of real slices and what is scored against it, with paired draws.

    The real slices are drawn once, and so are the prompts that arms share with their seeds, so that
    differences between arms have an interval of their own.
    """

    real: Resampled
    num_draws: int
    confidence: float
    seed_parts: tuple[int | str, ...]

    @classmethod
    def of(
        cls,
        features: FloatArray,
        groups: Sequence[str],
        *,
        num_draws: int,
        confidence: float,
        seed_parts: tuple[int | str, ...],
    ) -> "Panel":
        """Draw the real slices (n, d) by their groups.

        Raises:
            SampleSizeError: Fewer than two slices.
        """
        rng = numpy_rng(*seed_parts, "bootstrap", "real")
        real = resample(features, groups, num_draws=num_draws, rng=rng)
        return cls(real, num_draws, confidence, seed_parts)

    def score(
        self,
        metric: Metric,
        features: FloatArray,
        groups: Sequence[str],
        *,
        name: str,
        pool: Sequence[str] | None = None,
        paired: bool = False,
    ) -> dict[str, Estimate]:
        """Score features (m, d) against the real ones; see `draw` for `name` and `pool`.

        Gives one estimate for each of the metric's numbers, by its name. `paired`: the rows show
        the real slices themselves, in their order, and share their draws.

        Raises:
            SampleSizeError: Too few images, or groups.
        """
        metric.SPEC.require(real=self.real.features, synthetic=features)
        if paired:
            other = Resampled(features, self.real.groups, self.real.weights)
        else:
            other = self.draw(features, groups, name=name, pool=pool)
        real = self.real
        num_draws = min(len(real.weights), len(other.weights)) - 1
        if metric.SPEC.max_draws is not None:
            num_draws = min(num_draws, metric.SPEC.max_draws)
        real, other = real.first_draws(num_draws), other.first_draws(num_draws)
        values = np.atleast_2d(metric.resample(real=real, synthetic=other, paired=paired))
        return self.estimates(metric.SPEC, values, n_synthetic=len(features))

    def draw(
        self,
        features: NDArray[Any],
        groups: Sequence[str],
        *,
        name: str,
        pool: Sequence[str] | None = None,
    ) -> Resampled:
        """Draw a sample by its groups; `name` seeds the draws.

        With a `pool` of prompts, whatever its samples are called, they share their draws.
        """
        rng = numpy_rng(*self.seed_parts, "bootstrap", name if pool is None else "pool")
        return resample(features, groups, num_draws=self.num_draws, rng=rng, pool=pool)

    def estimates(
        self, spec: MetricSpec, values: FloatArray, *, n_synthetic: int
    ) -> dict[str, Estimate]:
        """Turn values (num_scores, 1 + num_draws) into estimates; scores of NaN are left out."""
        return {
            each.key: make_estimate(
                each,
                row[np.isfinite(row)],
                num_groups=self.real.weights.shape[1],
                confidence=self.confidence,
                n_real=len(self.real.features),
                n_synthetic=n_synthetic,
            )
            for each, row in zip(spec.each(), values, strict=True)
            if np.isfinite(row[0])
        }

    def chance(
        self,
        metric: Metric,
        sample: tuple[FloatArray, Sequence[str]],
        floor: tuple[FloatArray, Sequence[str]],
        *,
        name: str,
        count: int,
    ) -> tuple[float | None, ...]:
        """Return a permutation p for each score: is the sample worse than the floor's slices?

        Groups of the sample (features, groups) and of the floor are thrown together, and samples of
        as many images drawn from them blindly; p is the share that scores as badly. A score's own
        direction says what is bad. None without permutations.
        """
        if count == 0:
            return (None,) * len(metric.SPEC.each())
        names = [f"a{g}" for g in sample[1]] + [f"b{g}" for g in floor[1]]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(names))}
        groups = np.asarray([numbers[group] for group in names], dtype=np.intp)
        sizes = np.bincount(groups)
        weights = np.zeros((1 + count, len(numbers)))
        weights[0, groups[: len(sample[1])]] = 1
        rng = numpy_rng(*self.seed_parts, "permutation", name)
        for row in weights[1:]:
            order = rng.permutation(len(numbers))
            needed = np.searchsorted(np.cumsum(sizes[order]), len(sample[1])) + 1
            row[order[:needed]] = 1
        pooled = Resampled(np.concatenate([sample[0], floor[0]]), groups, weights)
        ones = np.ones((1 + count, self.real.weights.shape[1]))
        real = Resampled(self.real.features, self.real.groups, ones)
        values = np.atleast_2d(metric.resample(real=real, synthetic=pooled))
        p_values: list[float | None] = []
        for each, row in zip(metric.SPEC.each(), values, strict=True):
            extreme = row[1:] <= row[0] if each.higher_is_better else row[1:] >= row[0]
            p_values.append(float(1 + extreme.sum()) / len(row))
        return tuple(p_values)


def with_p(
    estimates: Mapping[str, Estimate], spec: MetricSpec, p_values: Sequence[float | None]
) -> dict[str, Estimate]:
    """Give each of a metric's estimates its p; `p_values` in the order of the metric's scores."""
    by_key = dict(zip((each.key for each in spec.each()), p_values, strict=True))
    return {key: replace(estimate, p=by_key[key]) for key, estimate in estimates.items()}
