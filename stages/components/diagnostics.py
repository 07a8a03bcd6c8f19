"""Accuracy, sensitivity, specificity and AUROC of a yes/no test, with intervals and comparisons.

Several runs of one classifier (seeds) judge the same slices: values are means over the runs, and
intervals speak of the slices alone.

Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927;
Hanley and McNeil, "The Meaning and Use of the Area under a ROC Curve", Radiology 1982; McNemar,
"Note on the sampling error of the difference between correlated proportions", Psychometrika 1947.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SampleSizeError
from stages.components.bootstrap import FloatArray

THRESHOLD = 0.5  # probability from which a slice counts as "tumour"
BoolArray: TypeAlias = NDArray[np.bool_]
METRICS = ("accuracy", "sensitivity", "specificity", "auroc")


@dataclass(frozen=True)
class Judged:
    """Test slices judged by one classifier: probability (runs, n) of a tumour, truth (n,)."""

    probability: FloatArray
    is_tumor: BoolArray

    @property
    def is_right(self) -> FloatArray:
        """Share of the runs that judged each slice rightly, (n,)."""
        share: FloatArray = ((self.probability >= THRESHOLD) == self.is_tumor).mean(axis=0)
        return share

    def rows(self, metric: str) -> BoolArray:
        """Return the slices that a proportion is taken over, (n,)."""
        return {
            "accuracy": np.ones_like(self.is_tumor),
            "sensitivity": self.is_tumor,
            "specificity": ~self.is_tumor,
        }[metric]


def confusion(judged: Judged) -> dict[str, int]:
    """Count the four outcomes over all runs."""
    called = judged.probability >= THRESHOLD
    truth = np.broadcast_to(judged.is_tumor, called.shape)
    return {
        "true_positive": int((called & truth).sum()),
        "false_negative": int((~called & truth).sum()),
        "false_positive": int((called & ~truth).sum()),
        "true_negative": int((~called & ~truth).sum()),
    }


def wilson(successes: float, count: int, *, confidence: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; `successes` may be a mean over runs.

    Raises:
        SampleSizeError: `count` is 0.
    """
    from scipy.stats import norm

    if count < 1:
        raise SampleSizeError(f"a proportion needs at least 1 slice, found {count}")
    z = float(norm.ppf(0.5 + confidence / 2))
    share = successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = max(0.0, centre - float(half)), min(1.0, centre + float(half))
    return min(low, share), max(high, share)  # at 0 and 1 rounding would leave the share outside


def proportion_draws(judged: Judged, metric: str, weights: FloatArray) -> FloatArray:
    """Return a proportion in each draw; weights (draws, n). NaN where a draw has no such slice."""
    rows = judged.rows(metric)
    totals = weights[:, rows].sum(axis=1)
    with np.errstate(invalid="ignore"):
        draws: FloatArray = weights[:, rows] @ judged.is_right[rows] / totals
    return draws


def auroc_draws(judged: Judged, weights: FloatArray) -> FloatArray:
    """Return the area under the ROC curve in each draw, a mean over runs; weights (draws, n).

    The share of pairs (tumour, no tumour) in the right order, ties counting half. NaN where a draw
    lacks one kind.
    """
    positive, negative = weights[:, judged.is_tumor], weights[:, ~judged.is_tumor]
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    total = np.zeros(len(weights))
    for run in judged.probability:
        yes, no = run[judged.is_tumor, None], run[None, ~judged.is_tumor]
        order = (yes > no) + 0.5 * (yes == no)
        total += ((positive @ order) * negative).sum(axis=1)
    with np.errstate(invalid="ignore"):
        draws: FloatArray = total / pairs / len(judged.probability)
    return draws


def metric_draws(judged: Judged, metric: str, weights: FloatArray) -> FloatArray:
    """Return one of `METRICS` in each draw; weights (draws, n)."""
    if metric == "auroc":
        return auroc_draws(judged, weights)
    return proportion_draws(judged, metric, weights)


def mcnemar(first: Judged, second: Judged) -> dict[str, float]:
    """Test whether two classifiers err on different slices: exact two-sided McNemar.

    Several runs judge by their mean probability.
    """
    from scipy.stats import binomtest

    def is_right(judged: Judged) -> BoolArray:
        right: BoolArray = (judged.probability.mean(axis=0) >= THRESHOLD) == judged.is_tumor
        return right

    a, b = is_right(first), is_right(second)
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    trials = only_first + only_second
    p = float(binomtest(only_first, trials).pvalue) if trials else 1.0
    return {"only_first_right": only_first, "only_second_right": only_second, "p": p}


def summarise_runs(judged: Judged) -> Mapping[str, list[float]]:
    """Return each of `METRICS` for every run by itself; NaN-free values only."""
    once = np.ones((1, len(judged.is_tumor)))
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for run in judged.probability:
        single = Judged(run[None], judged.is_tumor)
        for metric in METRICS:
            value = float(metric_draws(single, metric, once)[0])
            if np.isfinite(value):
                found[metric].append(value)
    return found
