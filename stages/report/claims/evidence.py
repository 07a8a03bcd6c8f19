"""Scores, and differences between arms, as the claims look them up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.contracts import ALL, ScoreRecord
from stages.report.arms import Arm
from stages.report.artifacts import ReportInputs, name_deciding_features


@dataclass(frozen=True)
class Difference:
    """`first - second` of one metric with its interval, as a stage recorded it."""

    first: str
    second: str
    metric: str
    value: float
    low: float
    high: float
    features: str | None = None
    group: str = ALL
    p: float | None = None  # of whole groups' signs flipped, where accuracies are compared
    num_groups: int | None = None  # that the interval draws whole
    num_negative_groups: int | None = None  # of these, groups with slices without a tumour

    def turned(self) -> "Difference":
        """Return `second - first`."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            value=-self.value,
            low=-self.high,
            high=-self.low,
        )


@dataclass(frozen=True)
class Evidence:
    """One number behind a verdict: a difference with its interval and its sample sizes."""

    what: str
    metric: str
    value: float
    low: float
    high: float
    n_real: int | None
    n_synthetic: int | None
    p: float | None
    num_groups: int | None
    num_negative_groups: int | None


@dataclass(frozen=True)
class Findings:
    """All that a claim may rest on; `features` are the ones that decide."""

    arms: tuple[Arm, ...]
    scores: tuple[ScoreRecord, ...]
    differences: tuple[Difference, ...]
    features: str | None = None

    def score(self, arm: str, metric: str, group: str = ALL) -> ScoreRecord | None:
        """Find one score; None where the run has none."""
        for score in self.scores:
            if (score.arm, score.metric, score.group) == (arm, metric, group) and (
                self.features is None or score.features in (None, self.features)
            ):
                return score
        return None

    def difference(self, first: str, second: str, metric: str) -> Difference | None:
        """Find `first - second` over all classes, turning a recorded `second - first` round."""
        for row in self.differences:
            if row.metric != metric or row.group != ALL:
                continue
            if self.features is not None and row.features not in (None, self.features):
                continue
            if (row.first, row.second) == (first, second):
                return row
            if (row.first, row.second) == (second, first):
                return row.turned()
        return None

    def evidence(
        self, pairs: Sequence[tuple[str, str]], metrics: Sequence[str]
    ) -> tuple[Evidence, ...]:
        """List the recorded differences of pairs of arms, with n of the first arm's score."""
        rows = []
        for first, second in pairs:
            for metric in metrics:
                difference = self.difference(first, second, metric)
                if difference is None:
                    continue
                score = self.score(first, metric)
                rows.append(
                    Evidence(
                        what=f"{first} − {second}",
                        metric=metric,
                        value=difference.value,
                        low=difference.low,
                        high=difference.high,
                        n_real=None if score is None else score.n_real,
                        n_synthetic=None if score is None else score.n_synthetic,
                        p=difference.p,
                        num_groups=difference.num_groups,
                        num_negative_groups=difference.num_negative_groups,
                    )
                )
        return tuple(rows)


def read_differences(notes: Mapping[str, Any]) -> tuple[Difference, ...] | None:
    """Read `notes["differences"]`; None where the stage recorded none.

    A key is "first - second"; its value is one difference or a list of them (several metrics).
    """
    recorded = notes.get("differences")
    if recorded is None:
        return None
    differences: list[Difference] = []
    for key, value in recorded.items():
        first, _, second = str(key).partition(" - ")
        rows: Sequence[Mapping[str, Any]] = value if isinstance(value, list) else [value]
        for row in rows:
            differences.append(
                Difference(
                    first=first,
                    second=second,
                    metric=row["metric"],
                    value=row["value"],
                    low=row["low"],
                    high=row["high"],
                    features=row.get("features"),
                    group=row.get("group", ALL),
                    p=row.get("permutation_p"),
                    num_groups=row.get("num_groups"),
                    num_negative_groups=row.get("num_negative_groups"),
                )
            )
    return tuple(differences)


def read_findings(
    inputs: ReportInputs, scores: Sequence[ScoreRecord]
) -> tuple[Findings, tuple[str, ...]]:
    """Gather what the claims rest on, and say which optional notes are missing."""
    differences: list[Difference] = []
    missing = []
    for artifact in (inputs.evaluate, inputs.classify):
        recorded = read_differences(artifact.manifest["notes"])
        if not recorded:
            stage = artifact.manifest["stage"]
            missing.append(f"{stage} recorded no differences between arms, so claims lack them.")
        else:
            differences += recorded
    findings = Findings(
        arms=inputs.arms(),
        scores=tuple(scores),
        differences=tuple(differences),
        features=name_deciding_features(inputs),
    )
    return findings, tuple(missing)
