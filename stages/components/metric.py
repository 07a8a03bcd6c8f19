"""What a metric plug-in declares and does; light enough to be read before anything is loaded.

A *pair* metric compares features of real and synthetic slices (`resample`). A *sample* metric
describes one set of slices by itself (`describe`), so that real slices have a value of their own
to stand beside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import OTHER_SCORES, ScoreStyle
from pipeline.errors import SampleSizeError
from stages.components.statistics.bootstrap import FloatArray, Resampled

LUMA = "luma"  # stands in `MetricSpec.features` for the slices' own brightness, (n, size * size)


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


class Metric(Protocol):
    """The functions of a pair metric's module."""

    SPEC: MetricSpec

    def compute(
        self, *, real: FloatArray, synthetic: FloatArray, rng: np.random.Generator | None = None
    ) -> Any:
        """Return the score, or scores by name, of features (n, d) and (m, d)."""

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
