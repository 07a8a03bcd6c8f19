"""Permutation of whole groups: do two classifiers err equally often, where slices are not alone?

McNemar's test takes every slice for a witness of its own; slices of one subject are not. Under the
null the two are exchangeable within a group, so that the difference of a group's sums may as well
have the other sign.

Source: Fisher, "The Design of Experiments", 1935, section 21; Phipson and Smyth, "Permutation
P-values Should Never Be Zero", Statistical Applications in Genetics and Molecular Biology 2010.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from stages.components.statistics.bootstrap import FloatArray

EXACT_GROUPS = 12  # that differ; up to here all 2**n signs are tried
NUM_FLIPS = 1000  # beyond, as many are drawn


def sign_flip_p(
    differences: FloatArray, groups: Sequence[Hashable], *, rng: np.random.Generator
) -> float:
    """Return the two-sided p of a sum of paired differences, by flipping signs of whole groups.

    Args:
        differences: First minus second, of each slice, (n,).
        groups: The group of each slice.
        rng: Used only where more than `EXACT_GROUPS` groups differ.

    Example:
        >>> sign_flip_p(np.array([1.0, 1.0, 1.0]), ["a", "b", "c"], rng=np.random.default_rng(0))
        0.25
    """
    sums: dict[Hashable, float] = dict.fromkeys(groups, 0.0)
    for group, difference in zip(groups, differences, strict=True):
        sums[group] += float(difference)
    each = np.asarray([value for value in sums.values() if abs(value) > 1e-9])
    if len(each) <= EXACT_GROUPS:
        numbers = np.arange(2 ** len(each))[:, None]
        signs = 1.0 - 2.0 * (numbers >> np.arange(len(each)) & 1)
        return float((np.abs(signs @ each) >= abs(each.sum()) - 1e-9).mean())
    signs = rng.choice([-1.0, 1.0], (NUM_FLIPS, len(each)))
    as_far = int((np.abs(signs @ each) >= abs(each.sum()) - 1e-9).sum())
    return (1 + as_far) / (1 + NUM_FLIPS)
