"""Diagnostics of a classifier of several classes: the metrics of `diagnostics`, class by class.

Macro means are means over the classes, each against all others. Calibration looks at the class that
is named: how sure, and how often right.

Source: Hand and Till, "A simple generalisation of the area under the ROC curve for multiple class
classification problems", Machine Learning 2001 (each class against the others, as in Provost and
Domingos 2001); Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Label
from stages.classify import diagnostics
from stages.classify.diagnostics import Predictions
from stages.components.statistics.bootstrap import FloatArray
from stages.components.statistics.proportions import BoolArray

METRICS = (
    "class_accuracy",
    "class_balanced_accuracy",
    "class_auroc",
    "class_auprc",
    "class_ece",
    "class_brier",
)
PROPORTIONS = ("class_accuracy",)
ERRORS = frozenset({"class_ece", "class_brier"})  # lower is better


@dataclass(frozen=True)
class ClassPredictions:
    """What one classifier predicts of test slices: probability (runs, n, class), targets (n,)."""

    probability: FloatArray
    targets: NDArray[np.intp]
    labels: tuple[Label, ...]

    @property
    def named(self) -> NDArray[np.intp]:
        """The class that each run names, (runs, n)."""
        classes: NDArray[np.intp] = self.probability.argmax(axis=2)
        return classes

    @property
    def is_right(self) -> FloatArray:
        """Share of the runs that are right about each slice, (n,)."""
        share: FloatArray = (self.named == self.targets).mean(axis=0)
        return share

    @property
    def top(self) -> Predictions:
        """How sure each run was of the class it named, against whether it was right.

        Right and wrong differ between runs, so runs stand one after the other: (1, runs * n).
        """
        sure, right = self.probability.max(axis=2), self.named == self.targets
        return Predictions(sure.reshape(1, -1), right.ravel())

    def against_others(self, number: int) -> Predictions:
        """One class against all others, called where it is named: a yes/no test."""
        return Predictions(self.probability[:, :, number], self.targets == number)

    def runs(self) -> "Iterator[ClassPredictions]":
        """Yield each run by itself."""
        return (ClassPredictions(run[None], self.targets, self.labels) for run in self.probability)

    def rows(self, metric: str) -> BoolArray:
        """Return the slices that a metric is taken over, (n,): all."""
        return np.ones(len(self.targets), dtype=bool)

    def draws(self, metric: str, weights: FloatArray) -> FloatArray:
        """Return one of `METRICS` in each draw; weights (draws, n). NaN where a class is absent."""
        totals = weights.sum(axis=1)
        draws: FloatArray
        if metric == "class_accuracy":
            draws = weights @ self.is_right / totals
        elif metric == "class_brier":
            truth = np.eye(len(self.labels))[self.targets]
            draws = weights @ ((self.probability - truth) ** 2).sum(axis=2).mean(axis=0) / totals
        elif metric == "class_ece":
            runs = [run.top for run in self.runs()]
            draws = np.mean([diagnostics.ece_draws(run, weights) for run in runs], axis=0)
        elif metric == "class_balanced_accuracy":
            with np.errstate(invalid="ignore"):
                shares = [
                    weights[:, rows] @ self.is_right[rows] / weights[:, rows].sum(axis=1)
                    for rows in (self.targets == number for number in range(len(self.labels)))
                ]
            draws = np.mean(shares, axis=0)
        else:
            one = {"class_auroc": diagnostics.auroc_draws, "class_auprc": diagnostics.auprc_draws}
            numbers = range(len(self.labels))
            draws = np.mean([one[metric](self.against_others(k), weights) for k in numbers], axis=0)
        return draws


def confusion(predictions: ClassPredictions) -> dict[str, dict[str, int]]:
    """Count over all runs what was named for each true class: truth -> named -> count."""
    numbers = range(len(predictions.labels))
    return {
        truth: {
            predictions.labels[k]: int(
                (predictions.named[:, predictions.targets == row] == k).sum()
            )
            for k in numbers
        }
        for row, truth in enumerate(predictions.labels)
    }
