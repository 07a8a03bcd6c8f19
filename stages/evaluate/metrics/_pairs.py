"""Pairs of slices that tell how varied a sample is: of one class or prompt, never of one group.

Two slices of one subject resemble each other whatever the source, so pairs lie in two groups. Every
synthetic image is a group of its own.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stages.components.statistics.bootstrap import FloatArray
from stages.evaluate.metric import Described

Within = Literal["class", "prompt"]
Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


def keys(sample: Described, within: Within) -> Sequence[str] | None:
    """Return what two slices must share to be a pair; None where the sample has no prompts."""
    return sample.labels if within == "class" else sample.prompts


def disjoint_pairs(sample: Described, within: Within) -> Pairs:
    """Pair slices in order, each at most once, so that the pairs' values are independent."""
    names = keys(sample, within)
    waiting: dict[str, list[int]] = {}
    first: list[int] = []
    second: list[int] = []
    for row, name in enumerate(names or ()):
        others = waiting.setdefault(name, [])
        partner = next((o for o in others if sample.groups[o] != sample.groups[row]), None)
        if partner is None:
            others.append(row)
        else:
            others.remove(partner)
            first.append(partner)
            second.append(row)
    return np.asarray(first, dtype=np.intp), np.asarray(second, dtype=np.intp)


def weighted(sample: Described, pairs: Pairs, values: FloatArray) -> FloatArray:
    """Average the pairs' values (m,) in each draw, (1 + num_draws,); NaN without pairs."""
    first, second = (sample.weights[:, sample.groups[rows]] for rows in pairs)
    weights = first * second
    totals = weights.sum(axis=1)
    means = np.full(len(weights), np.nan)
    np.divide(weights @ values, totals, out=means, where=totals > 0)
    return means


def permutation_p(
    values: FloatArray, floor: FloatArray, *, higher: bool, rng: np.random.Generator, count: int
) -> float | None:
    """Return the p of independent values (m,) against the floor's (k,) by exchanging them.

    `higher`: whether a higher mean is worse. None without values on either side or draws.
    """
    if not len(values) or not len(floor) or not count:
        return None
    pooled = np.concatenate([values, floor])
    drawn = np.stack([rng.permutation(pooled)[: len(values)].mean() for _ in range(count)])
    observed = values.mean()
    extreme = drawn >= observed if higher else drawn <= observed
    return float(1 + extreme.sum()) / (1 + count)
