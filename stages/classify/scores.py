"""Scores of all that predicted the test slices of one task: overall, by group, between arms.

All intervals count groups of test slices, by draws that arms share: Wilson's on the effective
number of slices for proportions, t for differences of proportions, percentiles for all else. The
interval of a calibration error is shifted so that the draws' mean lies on the value: a draw holds
fewer distinct slices, and that alone makes the error grow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from pipeline.contracts import (
    ALL,
    AT_CUT,
    LABELS,
    UNKNOWN,
    Label,
    PredictionRecord,
    ScoreRecord,
    SliceRecord,
    Task,
)
from pipeline.seeding import numpy_rng
from stages.classify import class_diagnostics, diagnostics, fairness
from stages.classify.class_diagnostics import ClassPredictions
from stages.classify.diagnostics import Predictions, weighted_share
from stages.components.statistics import proportions
from stages.components.statistics.bootstrap import FloatArray, interval, resample
from stages.components.statistics.cohorts import Item
from stages.components.statistics.permutation import sign_flip_p
from stages.components.statistics.proportions import BoolArray, Interval

NUM_DRAWS = 1000  # of groups of test slices; each draw is a sum over weights
CONFIDENCE = 0.95
CENTRED = ("ece", "class_ece")
AnyPredictions: TypeAlias = Predictions | ClassPredictions


def list_groups(items: Sequence[Item], records: Sequence[SliceRecord]) -> dict[str, BoolArray]:
    """Return the rows of each orientation, contrast and, where there are several, source."""
    columns: dict[str, list[str]] = {
        "": [item.orientation for item in items],
        "contrast:": [record.modality for record in records],
        "source:": [record.source for record in records],
    }
    groups: dict[str, BoolArray] = {}
    for prefix, values in columns.items():
        names = sorted(set(values) - {UNKNOWN})
        if prefix == "source:" and len(names) < 2:
            continue
        column = np.asarray(values)
        groups |= {prefix + name: np.asarray(column == name, dtype=bool) for name in names}
    return groups


class Tester:
    """Test slices with their draws, and the scores of all that predicted them."""

    def __init__(
        self, test: Sequence[Item], records: Sequence[SliceRecord], *, experiment: str, seed: int
    ) -> None:
        self.test = test
        self.experiment = experiment
        self.seed = seed
        self.groups = list_groups(test, records)
        self.labels = {
            label: rows
            for label in LABELS
            if (rows := np.asarray([item.label == label for item in test], dtype=bool)).any()
        }
        drawn = resample(
            np.zeros((len(test), 1)),
            [item.group for item in test],
            num_draws=NUM_DRAWS,
            rng=numpy_rng(seed, "classify", "bootstrap"),
        )
        self.weights: FloatArray = drawn.row_weights
        self.predictions: dict[str, AnyPredictions] = {}
        self.at_cut: dict[str, Predictions] = {}  # at operating points, where validation gave one
        self.num_synthetic: dict[str, int] = {}
        self._draws: dict[tuple[str, str], FloatArray] = {}

    def add(self, arm: str, predictions: AnyPredictions, *, num_synthetic: int) -> None:
        """Keep what an arm said, and on how many synthetic slices it was trained."""
        if isinstance(predictions, Predictions) and predictions.cuts is not None:
            self.at_cut[arm] = predictions
            predictions = replace(predictions, cuts=None)
        self.predictions[arm] = predictions
        self.num_synthetic[arm] = num_synthetic

    def draws(self, arm: str, metric: str) -> FloatArray:
        """Return a metric of an arm in each draw, the sample itself first."""
        key = (arm, metric)
        if key not in self._draws:
            self._draws[key] = self.predictions[arm].draws(metric, self.weights)
        return self._draws[key]

    def score(self, arm: str) -> list[ScoreRecord]:
        """Score an arm over all test slices and over each group of them."""
        predictions = self.predictions[arm]
        is_binary = isinstance(predictions, Predictions)
        module = _module_of(predictions)
        records = []
        for metric in module.METRICS:
            values = self.draws(arm, metric)
            if metric in module.PROPORTIONS:
                records += self._share(arm, metric, ALL, predictions, self._every)
            elif np.isfinite(values[0]):
                ends = self._ends(values, self._every, is_centred=metric in CENTRED)
                row = (metric, ALL, float(values[0]), ends, self.test)
                records.append(self.record(arm, *row, is_error=metric in module.ERRORS))
        if arm in self.at_cut:
            for metric in diagnostics.PROPORTIONS:
                records += self._share(arm, metric + AT_CUT, ALL, self.at_cut[arm], self._every)
        for label, rows in self.labels.items():
            metric = "accuracy" if is_binary else "class_sensitivity"
            records += self._share(arm, metric, label, predictions, rows)
            if isinstance(predictions, ClassPredictions):
                one = predictions.against_others(predictions.labels.index(label))
                records += self._drawn(arm, "class_auroc", label, one, self._every)
        for group, rows in self.groups.items():
            if isinstance(predictions, ClassPredictions):
                records += self._share(arm, "class_accuracy", group, predictions, rows)
                continue
            for metric in diagnostics.PROPORTIONS:
                records += self._share(arm, metric, group, predictions, rows)
            records += self._drawn(arm, "auroc", group, predictions, rows)
        return records

    def score_fairness(
        self, arm: str, attribute: str, values: Sequence[str | None]
    ) -> tuple[list[ScoreRecord], dict[str, Any]]:
        """Score the gaps of an arm at its cut, and list the rates behind them."""
        predictions = self.at_cut.get(arm, self.predictions[arm])
        assert isinstance(predictions, Predictions)  # of the task "binary"
        rows = np.asarray([value is not None for value in values])
        records = []
        for criterion in fairness.CRITERIA:
            draws = fairness.gap_draws(predictions, criterion, values, self.weights)
            if np.isfinite(draws[0]):
                name, group = f"{criterion}_gap", f"protected:{attribute}"
                ends = self._ends(draws, rows, is_centred=False)
                row = (name, group, float(draws[0]), ends, self._items(rows))
                records.append(self.record(arm, *row, is_error=True))
        return records, fairness.table_rates(predictions, values)

    def differences(self, arm: str, reference: str) -> list[dict[str, Any]]:
        """Return `arm - reference` for every metric, by paired draws of the test slices."""
        first, second = self.predictions[arm], self.predictions[reference]
        module = _module_of(first)
        differences: list[dict[str, Any]] = []
        for metric in module.METRICS:
            values = self.draws(arm, metric) - self.draws(reference, metric)
            rows, low, high = first.rows(metric), None, None
            if metric not in module.PROPORTIONS:
                low, high = interval(values[1:][np.isfinite(values[1:])], confidence=CONFIDENCE)
            if low is None:
                low, high = proportions.difference_interval(
                    values, num_groups=self._count_groups(rows), confidence=CONFIDENCE
                )
            if not np.isfinite(values[0]) or low is None:
                continue
            row = {"metric": metric, "value": float(values[0]), "low": low, "high": high}
            row["num_groups"] = self._count_groups(rows)
            row["num_negative_groups"] = self._count_groups(rows & self._negative)
            if metric in ("accuracy", "class_accuracy"):
                row["permutation_p"] = sign_flip_p(
                    first.is_right - second.is_right,
                    [item.group for item in self.test],
                    rng=numpy_rng(self.seed, "classify", "permutation"),
                )
            differences.append(row)
        return differences

    def _items(self, rows: BoolArray) -> list[Item]:
        return [item for item, is_counted in zip(self.test, rows, strict=True) if is_counted]

    @property
    def _negative(self) -> BoolArray:
        return np.asarray([item.label == "notumor" for item in self.test], dtype=bool)

    def _count_groups(self, rows: BoolArray) -> int:
        return len({item.group for item in self._items(rows)})

    @property
    def _every(self) -> BoolArray:
        return np.ones(len(self.test), dtype=bool)

    def _ends(self, draws: FloatArray, rows: BoolArray, *, is_centred: bool) -> Interval:
        """Return the interval of a score in [0, 1] of some slices.

        Where all draws stick at 0 or 1 it is that of a share of groups, of the rarer kind of group.
        """
        kept = draws[1:][np.isfinite(draws[1:])]
        centre = float(draws[0]) if is_centred else None
        low, high = interval(kept, confidence=CONFIDENCE, centre=centre)
        if low is not None:
            return max(0.0, low), high
        if draws[0] not in (0.0, 1.0):
            return None, None
        kinds = [self._count_groups(rows & kind) for kind in (self._negative, ~self._negative)]
        return proportions.share_interval(
            draws,
            count=int(rows.sum()),
            num_groups=min(count for count in kinds if count),
            confidence=CONFIDENCE,
        )

    def _share(
        self, arm: str, metric: str, group: str, predictions: AnyPredictions, rows: BoolArray
    ) -> list[ScoreRecord]:
        """Score a share of right answers; nothing where there is no slice of that kind."""
        counted = rows & predictions.rows(metric.removesuffix(AT_CUT))
        count = int(counted.sum())
        if count == 0:
            return []
        ends = proportions.share_interval(
            weighted_share(predictions.is_right[counted], self.weights[:, counted]),
            count=count,
            num_groups=self._count_groups(counted),
            confidence=CONFIDENCE,
        )
        value = float(predictions.is_right[counted].mean())
        return [self.record(arm, metric, group, value, ends, self._items(counted))]

    def _drawn(
        self, arm: str, metric: str, group: str, predictions: Predictions, rows: BoolArray
    ) -> list[ScoreRecord]:
        """Score the ranking within some slices; nothing where they are of one kind."""
        within = Predictions(predictions.probability[:, rows], predictions.is_tumor[rows])
        draws = within.draws("auroc", self.weights[:, rows])
        if not np.isfinite(draws[0]):
            return []
        ends = self._ends(draws, rows, is_centred=False)
        row = (metric, group, float(draws[0]), ends, self._items(rows))
        return [self.record(arm, *row)]

    def record(
        self,
        arm: str,
        metric: str,
        group: str,
        value: float,
        ends: Interval,
        items: Sequence[Item],
        *,
        is_error: bool = False,
        features: str | None = None,
        p: float | None = None,
    ) -> ScoreRecord:
        """Write a score of an arm over some of the test slices as a row of the results."""
        return ScoreRecord(
            experiment=self.experiment,
            arm=arm,
            stage="classify",
            metric=metric,
            features=features,
            group=group,
            value=value,
            low=ends[0],
            high=ends[1],
            n_real=len(items),
            n_synthetic=self.num_synthetic[arm],
            higher_is_better=not is_error,
            p=p,
            num_groups=len({item.group for item in items}),
            num_negative_groups=len({i.group for i in items if i.label == "notumor"}),
        )


def list_differences(
    tester: Tester, pairs: Sequence[tuple[str, str]]
) -> Mapping[str, list[dict[str, Any]]]:
    """List the differences of pairs of arms under "arm - reference"."""
    return {f"{arm} - {other}": tester.differences(arm, other) for arm, other in pairs}


def describe(predictions: AnyPredictions) -> dict[str, Any]:
    """Return what the notes keep of an arm: confusion, each seed's scores, calibration (JSON)."""
    return {
        "confusion": _module_of(predictions).confusion(predictions),
        "seeds": summarise_runs(predictions),
        "calibration": diagnostics.calibration_curve(
            predictions if isinstance(predictions, Predictions) else predictions.top
        ),
    }


def summarise_runs(predictions: AnyPredictions) -> dict[str, list[float]]:
    """Return each metric of every run by itself, at `THRESHOLD`; NaN-free values only."""
    once = np.ones((1, predictions.probability.shape[1]))
    values = {
        metric: [float(run.draws(metric, once)[0]) for run in predictions.runs()]
        for metric in _module_of(predictions).METRICS
    }
    finite = {metric: [v for v in row if np.isfinite(v)] for metric, row in values.items()}
    return {metric: row for metric, row in finite.items() if row}


def list_predictions(
    task: Task, classes: Iterable[Label], tester: Tester
) -> list[PredictionRecord]:
    """List every test slice's probability under every arm and seed."""
    labels, records = list(classes), []
    for arm, predictions in tester.predictions.items():
        for seed, row in enumerate(predictions.probability):
            for item, p in zip(tester.test, row, strict=True):
                if task == "binary":
                    tumor, each = float(p), None
                else:
                    each = dict(zip(labels, p.tolist(), strict=True))
                    tumor = 1.0 - each["notumor"]
                records.append(
                    PredictionRecord(
                        arm=arm,
                        seed=seed,
                        slice_id=item.name,
                        label=item.label,
                        probability=tumor,
                        task=task,
                        probabilities=each,
                    )
                )
    return records


def _module_of(predictions: AnyPredictions) -> ModuleType:
    """Return the metrics' module: of a yes/no test, or of several classes."""
    return diagnostics if isinstance(predictions, Predictions) else class_diagnostics
