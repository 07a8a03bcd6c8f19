"""Precision, recall, density and coverage: do synthetic slices look real, and are all real covered?

With r_k(x) the distance from x to its k-th nearest neighbour in its own sample, k = 5, among slices
of other groups (subjects):

    precision  share of synthetic slices inside the ball r_k of some real slice
    recall     share of real slices inside the ball r_k of some synthetic slice
    density    mean number of real balls that hold a synthetic slice, over k
    coverage   share of real slices whose ball holds a synthetic slice

Slices of one group are no neighbours: a subject's other slices are near-copies, and balls that end
at them are so small that slices of other subjects fall outside (of 192 test slices of `mini`, two
thirds have their nearest neighbour in their own subject). Where every slice is its own group, as
synthetic images are, the scores are those of the publications.

Distances come in blocks, so memory is bounded by `BLOCK` times n. In a draw, the balls are those of
the groups that it holds, each once (a copy is no neighbour of itself), and averages count a group
as often as it was drawn.

Source: Kynkäänniemi et al., "Improved Precision and Recall Metric", NeurIPS 2019; Naeem et al.,
"Reliable Fidelity and Diversity Metrics for Generative Models", ICML 2020. Ties and the k-th
neighbour are those of the package `prdc`, which counts a slice as its own first neighbour. Groups
are a departure; that records of one subject belong on one side of a comparison: Saeb et al., "The
need to approximate the use-case in clinical machine learning", GigaScience 2017.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import FIDELITY
from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import BLOCK, FloatArray, Resampled
from stages.components.statistics.estimates import MetricSpec

NEAREST_K = 5

SPEC = MetricSpec(
    key="prdc",
    higher_is_better=True,
    scores=(("precision", True), ("recall", True), ("density", True), ("coverage", True)),
    least_n=NEAREST_K + 2,
    section=FIDELITY,
    advised_n=50,
    is_biased=True,  # fewer distinct slices in a draw have larger balls
    max_draws=200,
    limits={
        **dict.fromkeys(("precision", "recall", "coverage"), (0.0, 1.0)),
        "density": (0.0, float("inf")),
    },
    citation="Kynkäänniemi et al., NeurIPS 2019, and Naeem et al., ICML 2020; k = 5",
)


def resample(*, real: Resampled, synthetic: Resampled, paired: bool = False) -> FloatArray:
    """Return the four scores in each draw, (4, 1 + num_draws).

    `paired`: both samples have the same groups, and images of one group are no neighbours.

    Raises:
        SampleSizeError: Fewer than seven rows on one side, or fewer than five beside those of some
            group.
    """
    SPEC.require(real=real.features, synthetic=synthetic.features)
    for side, sample in (("real", real), ("synthetic", synthetic)):
        largest = int(np.bincount(sample.groups).max())
        if len(sample.features) - largest < NEAREST_K:
            raise SampleSizeError(
                f"{SPEC.key} needs at least {NEAREST_K} {side} images beside those of any one "
                f"group, found {len(sample.features) - largest}"
            )
    num_rows = min(len(real.weights), len(synthetic.weights), 1 + (SPEC.max_draws or 0))
    origin = real.features.mean(axis=0)  # less cancellation
    a, b = real.features - origin, synthetic.features - origin
    v, w = real.row_weights[:num_rows], synthetic.row_weights[:num_rows]
    real_radii, synthetic_radii = _radii(a, v > 0, real.groups), _radii(b, w > 0, synthetic.groups)
    is_precise = np.zeros((num_rows, len(b)), dtype=bool)
    num_balls = np.zeros((num_rows, len(b)))
    is_recalled = np.zeros((num_rows, len(a)), dtype=bool)
    is_covered = np.zeros((num_rows, len(a)), dtype=bool)
    for part, distances in _blocks(a, b):
        if paired:
            distances[real.groups[part, None] == synthetic.groups] = np.inf
        for draw in range(num_rows):
            held = v[draw, part] > 0
            inside = distances < np.where(held, real_radii[draw, part], -1.0)[:, None]
            is_precise[draw] |= inside.any(axis=0)
            num_balls[draw] += v[draw, part] @ inside
            is_covered[draw, part] = (inside & (w[draw] > 0)).any(axis=1)
            radii = np.where(w[draw] > 0, synthetic_radii[draw], -1.0)
            is_recalled[draw, part] = (distances < radii).any(axis=1)
    # Balls of a group drawn twice count twice; a mean over groups, as density is at k fixed.
    num_balls *= ((v > 0).sum(axis=1) / v.sum(axis=1))[:, None]
    return np.stack(
        [
            _mean(is_precise, w),
            _mean(is_recalled, v),
            _mean(num_balls / NEAREST_K, w),
            _mean(is_covered, v),
        ]
    )


def _mean(values: NDArray[np.bool_] | FloatArray, weights: FloatArray) -> FloatArray:
    means: FloatArray = (values * weights).sum(axis=1) / weights.sum(axis=1)
    return means


def _blocks(a: FloatArray, b: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
    """Yield distances of a block of rows of `a` to all rows of `b`."""
    squares = (b * b).sum(axis=1)
    for start in range(0, len(a), BLOCK):
        part = slice(start, min(start + BLOCK, len(a)))
        rows = a[part]
        squared = (rows * rows).sum(axis=1)[:, None] + squares[None, :] - 2.0 * (rows @ b.T)
        yield part, np.sqrt(np.maximum(squared, 0.0))


def _radii(rows: FloatArray, held: NDArray[np.bool_], groups: NDArray[np.intp]) -> FloatArray:
    """Return each row's distance to its k-th neighbour among held rows of other groups.

    (num_rows, n); 0, a ball that holds nothing, where a draw holds fewer neighbours.
    """
    radii = np.zeros(held.shape)
    for part, distances in _blocks(rows, rows):
        distances[groups[part, None] == groups] = np.inf
        for draw, mask in enumerate(held):
            members = np.flatnonzero(mask[part])
            if mask.sum() > NEAREST_K:
                near = distances[np.ix_(members, np.flatnonzero(mask))]
                kth = np.partition(near, NEAREST_K - 1, axis=1)[:, NEAREST_K - 1]
                radii[draw, part.start + members] = np.where(np.isfinite(kth), kth, 0.0)
    return radii
