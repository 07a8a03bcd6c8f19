"""What a classifier of several classes is worth: the metrics of `diagnostics`, class by class.

Macro means are means over the classes, each against all others. Calibration looks at the class that
is named: how sure, and how often right.

Source: Hand and Till, "A simple generalisation of the area under the ROC curve for multiple class
classification problems", Machine Learning 2001 (each class against the others, as in Provost and
Domingos 2001); Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.contracts import Label
from stages.classify import diagnostics
from stages.classify.diagnostics import Judged
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
class ClassJudged:
    """Test slices judged by one classifier: probability (runs, n, class), targets (n,)."""

    probability: FloatArray
    targets: NDArray[np.intp]
    labels: tuple[Label, ...]

    @property
    def named(self) -> NDArray[np.intp]:
        """The class that each run names, (runs, n)."""
        found: NDArray[np.intp] = self.probability.argmax(axis=2)
        return found

    @property
    def is_right(self) -> FloatArray:
        """Share of the runs that judged each slice rightly, (n,)."""
        share: FloatArray = (self.named == self.targets).mean(axis=0)
        return share

    @property
    def is_right_together(self) -> BoolArray:
        """Whether the runs' mean probability names the right class, (n,)."""
        right: BoolArray = self.probability.mean(axis=0).argmax(axis=1) == self.targets
        return right

    @property
    def top(self) -> Judged:
        """How sure each run was of the class it named, against whether it was right.

        Right and wrong differ between runs, so runs stand one after the other: (1, runs * n).
        """
        sure, right = self.probability.max(axis=2), self.named == self.targets
        return Judged(sure.reshape(1, -1), right.ravel())

    def against_others(self, number: int) -> Judged:
        """One class against all others, called where it is named: a yes/no test."""
        return Judged(self.probability[:, :, number], self.targets == number)

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
            runs = len(self.probability)
            singles = [
                Judged(self.probability[run].max(axis=1)[None], self.named[run] == self.targets)
                for run in range(runs)
            ]
            draws = np.mean([diagnostics.ece_draws(one, weights) for one in singles], axis=0)
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


def confusion(judged: ClassJudged) -> dict[str, dict[str, int]]:
    """Count over all runs what was named for each true class: truth -> named -> count."""
    numbers = range(len(judged.labels))
    return {
        truth: {
            judged.labels[k]: int((judged.named[:, judged.targets == row] == k).sum())
            for k in numbers
        }
        for row, truth in enumerate(judged.labels)
    }


def summarise_runs(judged: ClassJudged) -> Mapping[str, list[float]]:
    """Return each of `METRICS` for every run by itself; NaN-free values only."""
    once = np.ones((1, len(judged.targets)))
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for run in judged.probability:
        single = ClassJudged(run[None], judged.targets, judged.labels)
        for metric in METRICS:
            value = float(single.draws(metric, once)[0])
            if np.isfinite(value):
                found[metric].append(value)
    return found
