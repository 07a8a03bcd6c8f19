"""Metric plug-ins: what they declare and do; light enough to be read before anything is loaded.

A *pair* metric compares features of real and synthetic slices (`resample`). A *sample* metric
describes one set of slices by itself (`describe`), so that real slices have a value of their own
to stand beside.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.components.statistics.bootstrap import FloatArray, Resampled
from stages.components.statistics.estimates import MetricSpec


class Metric(Protocol):
    """The functions of a pair metric's module."""

    SPEC: MetricSpec

    def resample(
        self, *, real: Resampled, synthetic: Resampled, paired: bool = False
    ) -> FloatArray:
        """Return the score in each draw, (1 + num_draws,), or (num_scores, 1 + num_draws).

        The first is the estimate itself. A weight of 0 leaves a group out.
        """


@dataclass(frozen=True)
class Described:
    """One set of slices, as a sample metric sees it.

    `rows` is (n, d): features, or uint8 brightness where `SPEC.features` is `LUMA`. `groups` is
    (n,) in [0, num_groups), `weights` (1 + num_draws, num_groups). `prompts` and `texts` (n, d) are
    None for real slices; `texts` also where the network reads none.
    """

    rows: NDArray[Any]
    groups: NDArray[np.intp]
    weights: FloatArray
    labels: tuple[str, ...]
    prompts: tuple[str, ...] | None = None
    texts: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.rows)


class SampleMetric(Protocol):
    """The functions of a sample metric's module."""

    SPEC: MetricSpec

    def describe(self, sample: Described) -> FloatArray:
        """Return (num_scores, 1 + num_draws); a row of NaN where a score is not defined."""

    def chance(
        self, sample: Described, floor: Described, rng: np.random.Generator, count: int
    ) -> tuple[float | None, ...]:
        """Return a permutation p for each score, None where there is none to be had."""
