"""Intervals by resampling whole groups: subjects or near-duplicate clusters, never single slices.

Slices of one subject resemble each other, so resampling slices would promise too narrow an
interval. A draw takes as many groups as there are, with replacement, and is kept as a row of
weights (how often each group was taken), so that metrics which are sums over images or over pairs
need no feature twice. The first row of weights is always one: the sample itself.

A group that is drawn twice meets its own copy, and a distance between samples would see structure
that is not there. Metrics that sum over pairs therefore leave out every pair of one group, and with
it every pair of an image and itself.

Samples made from the same prompts and seeds differ less than their intervals say. With a `pool` of
prompts that they share, each prompt is drawn as often for one as for the other, and the interval of
a difference is that of paired samples.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SampleSizeError

FloatArray = NDArray[np.float64]

MIN_GROUPS = 5  # below, draws repeat each other and an interval would look far too certain
SAME = 1e-12  # ends of an interval that lie nearer to each other are one
BLOCK = 1024  # rows of a kernel matrix held at once: memory stays bounded at any n


@dataclass(frozen=True)
class Resampled:
    """A sample with its group of each row and its resampling weights.

    `features` is float64 (n, d), `groups` is (n,) in [0, num_groups), `weights` is float64
    (1 + num_draws, num_groups), its first row one.
    """

    features: FloatArray
    groups: NDArray[np.intp]
    weights: FloatArray

    @classmethod
    def once(cls, features: NDArray[np.floating]) -> "Resampled":
        """Take a sample as it is, without draws, every row a group."""
        count = len(features)
        return cls(features.astype(np.float64), np.arange(count), np.ones((1, count)))

    @property
    def row_weights(self) -> FloatArray:
        """Weights of the rows, (1 + num_draws, n)."""
        return self.weights[:, self.groups]

    def first_draws(self, num_draws: int) -> "Resampled":
        """Keep the sample itself and its first draws only."""
        return Resampled(self.features, self.groups, self.weights[: 1 + num_draws])


def resample(
    features: NDArray[np.floating],
    groups: Sequence[Hashable],
    *,
    num_draws: int,
    rng: np.random.Generator,
    pool: Sequence[Hashable] | None = None,
) -> Resampled:
    """Draw weights for the groups of a sample; rows (n, d) and their groups in the same order.

    The draws depend on `rng` and on the number of groups alone, in order of first appearance. Every
    draw holds at least two different groups; a sample of fewer than `MIN_GROUPS` has no draws.

    `pool`: the groups to draw from, each once, those of the sample among them. Samples of one pool
    and of equal generators share the weights of what they have in common; a sample that lacks some
    of the pool holds as many groups as happen to be drawn. None: the sample's own groups.

    Raises:
        SampleSizeError: Fewer than two rows, or not one group for each.
    """
    if len(features) < 2 or len(features) != len(groups):
        raise SampleSizeError(
            f"resampling needs at least 2 images and a group for each; found {len(features)} "
            f"images and {len(groups)} groups"
        )
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    count = len(numbers)
    size = num_draws if count >= MIN_GROUPS else 0
    places = {group: place for place, group in enumerate(numbers if pool is None else pool)}
    drawn = rng.multinomial(len(places), np.full(len(places), 1.0 / len(places)), size=size)
    drawn = drawn[:, [places[group] for group in numbers]]
    for row in np.flatnonzero((drawn > 0).sum(axis=1) < 2):
        while (drawn[row] > 0).sum() < 2:
            drawn[row] = rng.multinomial(count, np.full(count, 1.0 / count))
    return Resampled(
        features=np.asarray(features, dtype=np.float64),
        groups=np.asarray([numbers[group] for group in groups], dtype=np.intp),
        weights=np.concatenate([np.ones((1, count)), drawn.astype(np.float64)]),
    )


def interval(
    draws: FloatArray, *, confidence: float, centre: float | None = None
) -> tuple[float | None, float | None]:
    """Return the percentile interval of draws (num_draws,), or (None, None) without draws.

    Draws that are all the same tell nothing of a spread, so they give no interval either: one of
    width zero would promise certainty. With `centre`, the draws are shifted so that their mean lies
    there: for statistics such as the Frechet distance, whose bias grows as a draw holds fewer
    distinct images.
    """
    if draws.size == 0:
        return None, None
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    if high - low < SAME:
        return None, None
    shift = 0.0 if centre is None else centre - float(draws.mean())
    return float(low) + shift, float(high) + shift


def weighted_mean(values: FloatArray, sample: Resampled) -> FloatArray:
    """Return the mean of values (n,) in each draw, (1 + num_draws,)."""
    weights = sample.row_weights
    means: FloatArray = weights @ values / weights.sum(axis=1)
    return means


def mean_over_groups(
    values: Sequence[float] | FloatArray,
    groups: Sequence[Hashable],
    *,
    num_draws: int,
    rng: np.random.Generator,
) -> tuple[FloatArray, int]:
    """Return the mean of at least two values, itself and in each draw, and the number of groups.

    Raises:
        SampleSizeError: Fewer than two values, or not one group for each.
    """
    column = np.asarray(values, dtype=np.float64)
    drawn = resample(column[:, None], groups, num_draws=num_draws, rng=rng)
    return weighted_mean(column, drawn), drawn.weights.shape[1]
