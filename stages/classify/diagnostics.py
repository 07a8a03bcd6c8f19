"""Diagnostics of a yes/no test: shares of right answers, ranking, calibration, comparisons.

Several runs of one classifier (seeds) predict the same slices: values are means over the runs, and
intervals speak of the slices alone.

Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927;
Hanley and McNeil, "The Meaning and Use of the Area under a ROC Curve", Radiology 1982; Janes and
Pepe, "Adjusting for covariate effects on classification accuracy using the covariate-adjusted
receiver operating characteristic curve", Biometrika 2009 (pairs of one contrast alone); Davis and
Goadrich, "The relationship between Precision-Recall and ROC curves", ICML 2006 (average precision,
without interpolation); Brier, "Verification of forecasts expressed in terms of probability", 1950;
Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015 (ECE,
here of the probability of a tumour, in bins of equal width); Youden, "Index for rating diagnostic
tests", Cancer 1950.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import AUROC_WITHIN_CONTRAST, UNKNOWN
from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.proportions import THRESHOLD, BoolArray

NUM_BINS = 10  # of the calibration curve
PROPORTIONS = ("accuracy", "sensitivity", "specificity")
METRICS = (*PROPORTIONS, "auroc", AUROC_WITHIN_CONTRAST, "auprc", "ece", "brier")
ERRORS = frozenset({"ece", "brier"})  # lower is better


@dataclass(frozen=True)
class Predictions:
    """One classifier's predictions: probability (runs, n) of a tumour, truth (n,)."""

    probability: FloatArray
    is_tumor: BoolArray
    cuts: tuple[float, ...] | None = None  # of each run; None: `THRESHOLD` for all
    contrasts: NDArray[np.str_] | None = None  # of each slice, (n,)

    @property
    def called(self) -> BoolArray:
        """What each run calls a tumour, (runs, n)."""
        cuts = np.asarray(self.cuts or [THRESHOLD])
        return self.probability >= cuts[:, None]

    @property
    def is_right(self) -> FloatArray:
        """Share of the runs that are right about each slice, (n,)."""
        share: FloatArray = (self.called == self.is_tumor).mean(axis=0)
        return share

    def rows(self, metric: str) -> BoolArray:
        """Return the slices that a metric is taken over, (n,)."""
        kinds = {"sensitivity": self.is_tumor, "specificity": ~self.is_tumor}
        return kinds.get(metric, np.ones_like(self.is_tumor))

    def runs(self) -> "Iterator[Predictions]":
        """Yield each run by itself, at `THRESHOLD`."""
        return (replace(self, probability=run[None], cuts=None) for run in self.probability)

    def draws(self, metric: str, weights: FloatArray) -> FloatArray:
        """Return one of `METRICS` in each draw; weights (draws, n)."""
        others = {
            "auroc": auroc_draws,
            AUROC_WITHIN_CONTRAST: auroc_within_contrast_draws,
            "auprc": auprc_draws,
            "ece": ece_draws,
            "brier": brier_draws,
        }
        if metric in others:
            return others[metric](self, weights)
        rows = self.rows(metric)
        return weighted_share(self.is_right[rows], weights[:, rows])


def confusion(predictions: Predictions) -> dict[str, int]:
    """Count the four outcomes over all runs."""
    called = predictions.called
    truth = np.broadcast_to(predictions.is_tumor, called.shape)
    return {
        "true_positive": int((called & truth).sum()),
        "false_negative": int((~called & truth).sum()),
        "false_positive": int((called & ~truth).sum()),
        "true_negative": int((~called & ~truth).sum()),
    }


def weighted_share(is_right: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the share of slices (n,) that are right in each draw; NaN where one has no slice."""
    with np.errstate(invalid="ignore"):
        shares: FloatArray = weights @ is_right / weights.sum(axis=1)
    return shares


def auroc_draws(predictions: Predictions, weights: FloatArray) -> FloatArray:
    """Return the area under the ROC curve in each draw, a mean over runs; weights (draws, n).

    The share of pairs (tumour, no tumour) in the right order, ties counting half. NaN where a draw
    lacks one kind.
    """
    truth = predictions.is_tumor
    return _order_draws(predictions, weights, np.ones((truth.sum(), (~truth).sum()), dtype=bool))


def auroc_within_contrast_draws(predictions: Predictions, weights: FloatArray) -> FloatArray:
    """Return the same of pairs of one contrast, so that to know the contrast alone gives 0.5.

    Contrasts count by their pairs; slices of an unknown one have none. NaN where fewer than two
    contrasts are known: then the plain area says as much.
    """
    contrasts, truth = predictions.contrasts, predictions.is_tumor
    if contrasts is None or len(set(contrasts) - {UNKNOWN}) < 2:
        return np.full(len(weights), np.nan)
    with_tumor, without = contrasts[truth, None], contrasts[None, ~truth]
    return _order_draws(predictions, weights, (with_tumor == without) & (without != UNKNOWN))


def _order_draws(predictions: Predictions, weights: FloatArray, is_pair: BoolArray) -> FloatArray:
    """Return how often a tumour ranks above a slice without one, by pairs (tumours, others)."""
    positive, negative = weights[:, predictions.is_tumor], weights[:, ~predictions.is_tumor]
    pairs = ((positive @ is_pair.astype(np.float64)) * negative).sum(axis=1)
    total = np.zeros(len(weights))
    for run in predictions.probability:
        yes, no = run[predictions.is_tumor, None], run[None, ~predictions.is_tumor]
        order = is_pair * ((yes > no) + 0.5 * (yes == no))
        total += ((positive @ order) * negative).sum(axis=1)
    with np.errstate(invalid="ignore"):
        draws: FloatArray = total / pairs / len(predictions.probability)
    return draws


def auprc_draws(predictions: Predictions, weights: FloatArray) -> FloatArray:
    """Return the average precision in each draw, a mean over runs; weights (draws, n).

    The mean, over tumours, of the precision at their own probability, ties called together. NaN
    where a draw has no tumour. A classifier that knows nothing has the share of tumours.
    """
    total = np.zeros(len(weights))
    tumors = weights[:, predictions.is_tumor].sum(axis=1)
    for run in predictions.probability:
        order = np.argsort(-run, kind="stable")
        last = np.append(np.flatnonzero(np.diff(run[order])), len(run) - 1)  # of equals
        hits = np.cumsum(weights[:, order] * predictions.is_tumor[order], axis=1)[:, last]
        called = np.cumsum(weights[:, order], axis=1)[:, last]
        precision = hits / np.maximum(called, 1e-12)
        total += (np.diff(hits, axis=1, prepend=0.0) * precision).sum(axis=1)
    with np.errstate(invalid="ignore"):
        draws: FloatArray = total / tumors / len(predictions.probability)
    return draws


def brier_draws(predictions: Predictions, weights: FloatArray) -> FloatArray:
    """Return the mean squared error of the probabilities in each draw; weights (draws, n)."""
    errors = ((predictions.probability - predictions.is_tumor) ** 2).mean(axis=0)
    draws: FloatArray = weights @ errors / weights.sum(axis=1)
    return draws


def ece_draws(predictions: Predictions, weights: FloatArray) -> FloatArray:
    """Return the expected calibration error in each draw, a mean over runs; weights (draws, n)."""
    total = np.zeros(len(weights))
    for run in predictions.probability:
        members = np.eye(NUM_BINS)[_bins(run)]  # (n, bin)
        gaps = weights @ (members * (run - predictions.is_tumor)[:, None])
        total += np.abs(gaps).sum(axis=1)
    draws: FloatArray = total / weights.sum(axis=1) / len(predictions.probability)
    return draws


def _bins(probability: FloatArray) -> NDArray[np.intp]:
    return np.minimum((probability * NUM_BINS).astype(np.intp), NUM_BINS - 1)


def calibration_curve(predictions: Predictions) -> list[dict[str, float]]:
    """List the points of the calibration curve over all runs: what was said and what was true."""
    predicted, truth = (
        predictions.probability.ravel(),
        np.tile(predictions.is_tumor, len(predictions.probability)),
    )
    bins = _bins(predicted)
    return [
        {
            "said": float(predicted[bins == number].mean()),
            "true": float(truth[bins == number].mean()),
            "n": int((bins == number).sum()),
        }
        for number in range(NUM_BINS)
        if (bins == number).any()
    ]
