"""Shares of images nearer to a training slice than held-out ones are, with what that rests on.

Where the line lies between near and too near is known from some held-out slices only, and their
groups are drawn along with the images.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.components.features.nearest import TAIL, Nearest
from stages.components.statistics.bootstrap import FloatArray, Resampled

MAX_FOLDS = 50  # of the held-out groups; of fewer groups, each is left out by itself


class LeftOut:
    """Thresholds of held-out slices without one group (or fold of groups), in draws of the groups.

    A slice that sets a threshold is not called by it: held-out slices are called by those of other
    groups. An image of an arm has no group to leave out, so its arm's share is the mean over all
    these thresholds, each weighted by the slices of the group that it lacks: both shares have the
    same expectation where an arm copies nothing. Drawing held-out groups moves the thresholds, so
    what is not known of them is in the interval too.
    """

    def __init__(self, held_out: Nearest, drawn: Resampled) -> None:
        """Set the thresholds.

        Args:
            held_out: Neighbours of n held-out slices.
            drawn: Their groups, of which there are two at least, and draws of these.
        """
        self.held_out = held_out
        self.rows = drawn.row_weights  # (1 + num_draws, n)
        self.folds = drawn.groups % MAX_FOLDS
        lacks = self.folds == np.arange(int(self.folds.max()) + 1)[:, None]  # (num_folds, n)
        self.distance, self.correlation = (
            np.stack([_quantiles(values, row * ~lacks, share) for row in self.rows])
            for values, share in ((held_out.distance, TAIL), (held_out.correlation, 1 - TAIL))
        )  # (1 + num_draws, num_folds)
        lacking = self.rows @ lacks.T
        self.weights = lacking / lacking.sum(axis=1, keepdims=True)

    def held_out_share(self, rows: Sequence[int]) -> FloatArray:
        """Return the share of some held-out slices that are called, in each draw."""
        near = self.held_out.distance < self.distance[:, self.folds]
        called = near | (self.held_out.correlation > self.correlation[:, self.folds])
        return _mean(called[:, rows], self.rows[:, rows])

    def share(self, neighbours: Nearest, weights: FloatArray) -> FloatArray:
        """Return the share of images (m,) that are called, in each draw, weighted (1 + k, m)."""
        count = min(len(weights), len(self.rows))
        called = np.empty((count, len(neighbours.distance)))
        for draw in range(count):
            near = neighbours.distance < self.distance[draw][:, None]
            called[draw] = self.weights[draw] @ (
                near | (neighbours.correlation > self.correlation[draw][:, None])
            )
        return _mean(called, weights[:count])


def _mean(called: NDArray[Any], weights: FloatArray) -> FloatArray:
    """Return weighted means over the rows of each draw; NaN where a draw holds none of them."""
    totals = weights.sum(axis=1)
    means = np.full(len(weights), np.nan)
    np.divide((called * weights).sum(axis=1), totals, out=means, where=totals > 0)
    return means


def _quantiles(values: FloatArray, weights: FloatArray, share: float) -> FloatArray:
    """Return quantiles (k,) of values (n,), each as often as whole weights (k, n) say.

    As `np.quantile`, linear between neighbours.
    """
    order = np.argsort(values)
    last = np.cumsum(weights[:, order], axis=1)
    place = (last[:, -1:] - 1) * share
    low = np.floor(place)
    below, above = (
        values[order][(last > np.minimum(at, last[:, -1:] - 1)).argmax(axis=1)]
        for at in (low, low + 1)
    )
    quantiles: FloatArray = below + (place - low)[:, 0] * (above - below)
    return quantiles
