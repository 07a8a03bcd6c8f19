"""Scores of all that judged the test slices of one task: overall, by group, between arms.

Proportions have Wilson's intervals; all other metrics, and every difference, have percentile
intervals from draws of groups of test slices, paired between arms. The interval of a calibration
error is shifted so that the draws' mean lies on the value: a draw holds fewer distinct slices, and
that alone makes the error grow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from pipeline.contracts import ALL, AT_CUT, LABELS, UNKNOWN, ScoreRecord, SliceRecord
from pipeline.seeding import numpy_rng
from stages.classify import class_diagnostics, diagnostics, fairness
from stages.classify.class_diagnostics import ClassJudged
from stages.classify.diagnostics import Judged
from stages.components.statistics import proportions
from stages.components.statistics.bootstrap import FloatArray, interval, resample
from stages.components.statistics.cohorts import Item
from stages.components.statistics.proportions import BoolArray

NUM_DRAWS = 1000  # of groups of test slices; each draw is a sum over weights
CONFIDENCE = 0.95
CENTRED = ("ece", "class_ece")
AnyJudged: TypeAlias = Judged | ClassJudged
Interval: TypeAlias = tuple[float | None, float | None]


def list_groups(items: Sequence[Item], records: Sequence[SliceRecord]) -> dict[str, BoolArray]:
    """Return the rows of each orientation, contrast and, where there are several, source."""
    columns: dict[str, list[str]] = {
        "": [item.orientation for item in items],
        "contrast:": [record.modality for record in records],
        "source:": [record.source for record in records],
    }
    found: dict[str, BoolArray] = {}
    for prefix, values in columns.items():
        names = sorted(set(values) - {UNKNOWN})
        if prefix == "source:" and len(names) < 2:
            continue
        column = np.asarray(values)
        found |= {prefix + name: np.asarray(column == name, dtype=bool) for name in names}
    return found


class Tester:
    """Test slices with their draws, and the scores of all that judged them."""

    def __init__(
        self, test: Sequence[Item], records: Sequence[SliceRecord], *, experiment: str, seed: int
    ) -> None:
        self.test = test
        self.experiment = experiment
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
        self.judged: dict[str, AnyJudged] = {}
        self.at_cut: dict[str, Judged] = {}  # at operating points, where validation gave one
        self.num_synthetic: dict[str, int] = {}
        self._draws: dict[tuple[str, str], FloatArray] = {}

    def add(self, arm: str, judged: AnyJudged, *, num_synthetic: int) -> None:
        """Keep what an arm said, and on how many synthetic slices it was trained."""
        if isinstance(judged, Judged) and judged.cuts is not None:
            self.at_cut[arm] = judged
            judged = replace(judged, cuts=None)
        self.judged[arm] = judged
        self.num_synthetic[arm] = num_synthetic

    def draws(self, arm: str, metric: str) -> FloatArray:
        """Return a metric of an arm in each draw, the sample itself first."""
        key = (arm, metric)
        if key not in self._draws:
            self._draws[key] = self.judged[arm].draws(metric, self.weights)
        return self._draws[key]

    def score(self, arm: str) -> list[ScoreRecord]:
        """Score an arm over all test slices and over each group of them."""
        judged = self.judged[arm]
        is_binary = isinstance(judged, Judged)
        module = diagnostics if isinstance(judged, Judged) else class_diagnostics
        found = []
        for metric in module.METRICS:
            values = self.draws(arm, metric)
            if metric in module.PROPORTIONS:
                found += self._share(arm, metric, ALL, judged, self._every)
            elif np.isfinite(values[0]):
                ends = self._ends(values, is_centred=metric in CENTRED)
                row = (metric, ALL, float(values[0]), ends, self._every)
                found.append(self._record(arm, *row, is_error=metric in module.ERRORS))
        if arm in self.at_cut:
            for metric in diagnostics.PROPORTIONS:
                found += self._share(arm, metric + AT_CUT, ALL, self.at_cut[arm], self._every)
        for label, rows in self.labels.items():
            metric = "accuracy" if is_binary else "class_sensitivity"
            found += self._share(arm, metric, label, judged, rows)
            if isinstance(judged, ClassJudged):
                one = judged.against_others(judged.labels.index(label))
                found += self._drawn(arm, "class_auroc", label, one, self._every)
        for group, rows in self.groups.items():
            if isinstance(judged, ClassJudged):
                found += self._share(arm, "class_accuracy", group, judged, rows)
                continue
            for metric in diagnostics.PROPORTIONS:
                found += self._share(arm, metric, group, judged, rows)
            found += self._drawn(arm, "auroc", group, judged, rows)
        return found

    def judge_fairness(
        self, arm: str, attribute: str, values: Sequence[str | None]
    ) -> tuple[list[ScoreRecord], dict[str, Any]]:
        """Score the gaps of an arm at its operating point, and list the rates behind them."""
        judged = self.at_cut[arm]
        rows = np.asarray([value is not None for value in values])
        found = []
        for criterion in fairness.CRITERIA:
            draws = fairness.gap_draws(judged, criterion, values, self.weights)
            if np.isfinite(draws[0]):
                name, group = f"{criterion}_gap", f"protected:{attribute}"
                ends = self._ends(draws, is_centred=False)
                row = (name, group, float(draws[0]), ends, rows)
                found.append(self._record(arm, *row, is_error=True))
        return found, fairness.table_rates(judged, values)

    def differences(self, arm: str, reference: str) -> list[dict[str, Any]]:
        """Return `arm - reference` for every metric, by paired draws of the test slices."""
        first, second = self.judged[arm], self.judged[reference]
        module = diagnostics if isinstance(first, Judged) else class_diagnostics
        found: list[dict[str, Any]] = []
        for metric in module.METRICS:
            values = self.draws(arm, metric) - self.draws(reference, metric)
            low, high = interval(values[1:][np.isfinite(values[1:])], confidence=CONFIDENCE)
            if not np.isfinite(values[0]) or low is None:
                continue
            row = {"metric": metric, "value": float(values[0]), "low": low, "high": high}
            if metric in ("accuracy", "class_accuracy"):
                row["mcnemar"] = diagnostics.mcnemar(
                    first.is_right_together, second.is_right_together
                )
            found.append(row)
        return found

    @property
    def _every(self) -> BoolArray:
        return np.ones(len(self.test), dtype=bool)

    def _ends(self, draws: FloatArray, *, is_centred: bool) -> Interval:
        kept = draws[1:][np.isfinite(draws[1:])]
        centre = float(draws[0]) if is_centred else None
        low, high = interval(kept, confidence=CONFIDENCE, centre=centre)
        return (None if low is None else max(0.0, low)), high

    def _share(
        self, arm: str, metric: str, group: str, judged: AnyJudged, rows: BoolArray
    ) -> list[ScoreRecord]:
        """Score a share of right answers; nothing where there is no slice of that kind."""
        counted = rows & judged.rows(metric.removesuffix(AT_CUT))
        count = int(counted.sum())
        if count == 0:
            return []
        right = float(judged.is_right[counted].sum())
        ends = proportions.wilson(right, count, confidence=CONFIDENCE)
        return [self._record(arm, metric, group, right / count, ends, counted)]

    def _drawn(
        self, arm: str, metric: str, group: str, judged: Judged, rows: BoolArray
    ) -> list[ScoreRecord]:
        """Score the ranking within some slices; nothing where they are of one kind."""
        own = Judged(judged.probability[:, rows], judged.is_tumor[rows])
        draws = own.draws("auroc", self.weights[:, rows])
        if not np.isfinite(draws[0]):
            return []
        ends = self._ends(draws, is_centred=False)
        return [self._record(arm, metric, group, float(draws[0]), ends, rows)]

    def _record(
        self,
        arm: str,
        metric: str,
        group: str,
        value: float,
        ends: Interval,
        rows: BoolArray,
        *,
        is_error: bool = False,
    ) -> ScoreRecord:
        return ScoreRecord(
            experiment=self.experiment,
            arm=arm,
            stage="classify",
            metric=metric,
            features=None,
            group=group,
            value=value,
            low=ends[0],
            high=ends[1],
            n_real=int(rows.sum()),
            n_synthetic=self.num_synthetic[arm],
            higher_is_better=not is_error,
        )


def list_differences(
    tester: Tester, pairs: Sequence[tuple[str, str]]
) -> Mapping[str, list[dict[str, Any]]]:
    """List the differences of pairs of arms under "arm - reference"."""
    return {f"{arm} - {other}": tester.differences(arm, other) for arm, other in pairs}
