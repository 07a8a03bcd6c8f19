"""Spread: mean distance in feature space of two slices of one class, or of one prompt.

All pairs of two groups count. Higher is more varied, and noise may be higher than any slice: read
it beside the row of real slices; a generator that repeats itself lies below that row.
"""

import numpy as np

from pipeline.contracts import VARIETY
from stages.components.statistics.bootstrap import BLOCK, FloatArray
from stages.components.statistics.estimates import MetricSpec
from stages.evaluate.metric import Described
from stages.evaluate.metrics._pairs import Within, disjoint_pairs, keys, permutation_p

WITHIN: tuple[Within, ...] = ("class", "prompt")

SPEC = MetricSpec(
    key="feature_spread",
    higher_is_better=True,
    scores=(("feature_spread", True), ("feature_spread_within_prompt", True)),
    kind="sample",
    least_n=4,
    section=VARIETY,
    citation="mean Euclidean distance between features of two slices of one class (and prompt)",
)


def describe(sample: Described) -> FloatArray:
    """Return both scores in each draw, (2, 1 + num_draws); a block of rows at a time."""
    weights = sample.weights[:, sample.groups]
    origin = sample.rows.mean(axis=0)
    rows = sample.rows - origin  # less cancellation
    squares = (rows * rows).sum(axis=1)
    totals = np.zeros((len(WITHIN), len(weights)))
    counts = np.zeros_like(totals)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        squared = squares[part, None] + squares[None, :] - 2 * rows[part] @ rows.T
        distances = np.sqrt(np.maximum(squared, 0.0))
        apart = sample.groups[part, None] != sample.groups[None, :]
        for number, within in enumerate(WITHIN):
            names = keys(sample, within)
            if names is None:
                continue
            codes = np.unique(np.asarray(names), return_inverse=True)[1]
            shared = apart & (codes[part, None] == codes[None, :])
            totals[number] += ((weights[:, part] @ (distances * shared)) * weights).sum(axis=1)
            counts[number] += ((weights[:, part] @ shared) * weights).sum(axis=1)
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def chance(
    sample: Described, floor: Described, rng: np.random.Generator, count: int
) -> tuple[float | None, ...]:
    """Return p for "as far apart as real slices", per score, from pairs that share no slice."""
    return tuple(
        permutation_p(_values(sample, w), _values(floor, w), higher=False, rng=rng, count=count)
        for w in WITHIN
    )


def _values(sample: Described, within: Within) -> FloatArray:
    first, second = disjoint_pairs(sample, within)
    return np.asarray(np.linalg.norm(sample.rows[first] - sample.rows[second], axis=1), float)
