"""Location's rows: every field of every arm over all images, each class and each orientation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.contracts import (
    ALL,
    CHANCE,
    REAL,
    UNKNOWN,
    VAE,
    SliceRecord,
    SyntheticRecord,
)
from pipeline.seeding import numpy_rng
from stages.components.judge import agreement
from stages.components.judge.reading import Reading, dice
from stages.components.statistics.bootstrap import FloatArray, mean_over_groups
from stages.components.statistics.estimates import Estimate, make_estimate
from stages.evaluate.differences import all_differences, difference
from stages.evaluate.scorer import Scorer

SPECS = {
    name: agreement.spec_of(name, f"share of images whose {words} is the one asked for, to a judge")
    for name, words in {
        "presence": "presence of a tumour",
        "side": "side, left or right, of those in which a tumour is seen,",
        "region": "region",
        "size": "size",
        "shape": "shape",
        "intensity": "intensity",
        "orientation": "plane",
    }.items()
} | {
    "sensitivity": agreement.spec_of("sensitivity", "presence, of images asked to show a tumour"),
    "specificity": agreement.spec_of("specificity", "presence, of images asked to show none"),
    "side_flip": agreement.spec_of(
        "side_flip",
        "share of pairs whose tumour, seen in both, moves with the prompt's side",
        title="Tumour moves with the prompt",
    ),
    "dice": agreement.spec_of(
        "dice",
        "mean overlap of the judge's tumour with the true one, where any is",
        title="Dice of the judge",
        is_share=False,
    ),
}
CONFUSED = ("presence", "side")  # fields whose confusion matrix is kept
OF_ABSENCE = ("presence", "specificity")  # scores that images without a tumour have a part in


class LocationTable:
    """Adds the rows of one run to a scorer, and gathers what the notes keep."""

    def __init__(self, scorer: Scorer, fields: Sequence[str]) -> None:
        self.scorer = scorer
        self.fields: dict[str, dict[str, dict[str, Any]]] = {}
        self.confusion: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
        self.flips: dict[str, dict[str, Any]] = {}
        self.estimates: dict[str, dict[str, Estimate]] = {name: {} for name in fields}
        self.one_sided: dict[str, dict[str, Estimate]] = {}
        self.n_real: dict[str, int] = {}

    def add_real(
        self,
        arm: str,
        slices: Sequence[SliceRecord],
        readings: Sequence[Reading],
        masks: Mapping[str, Any],
    ) -> None:
        """Score the judge itself on real slices, or on them through a VAE."""
        answers = [
            agreement.JudgedImage(
                s.slice_id, s.group_id, s.label, s.orientation, s.truth, reading.report
            )
            for s, reading in zip(slices, readings, strict=True)
            if s.truth is not None
        ]
        self._add(arm, answers)
        overlaps = [
            (dice(reading.patch, masks[s.slice_id]), s.group_id)
            for s, reading in zip(slices, readings, strict=True)
            if masks[s.slice_id].any()
        ]
        if len(overlaps) >= agreement.LEAST_N:
            means, num_groups = mean_over_groups(
                [value for value, _ in overlaps],
                [group for _, group in overlaps],
                num_draws=self.scorer.config.num_bootstrap,
                rng=numpy_rng(*self._seed("dice")),
            )
            self._keep(arm, ALL, "dice", means, len(overlaps), len(overlaps), num_groups)

    def add_arm(
        self,
        arm: str,
        records: Sequence[SyntheticRecord],
        readings: Sequence[Reading],
        units: Mapping[str, str],
    ) -> None:
        """Score an arm's images; counterfactual ones only in pairs with their originals."""
        originals: dict[str, agreement.JudgedImage] = {}
        turned: list[agreement.JudgedImage] = []
        for record, reading in zip(records, readings, strict=True):
            plane = record.requested.orientation or UNKNOWN
            name = record.counterfactual_of or record.image_id
            unit = units[record.image_id]
            answer = agreement.JudgedImage(
                name, unit, record.label, plane, record.requested, reading.report
            )
            if record.counterfactual_of is None:
                originals[name] = answer
            else:
                turned.append(answer)
        self._add(arm, list(originals.values()))
        pairs = agreement.list_flips(originals, turned)
        measured = agreement.measure(
            pairs, num_draws=self.scorer.config.num_bootstrap, seed_parts=self._seed("flip")
        )
        if measured is not None:
            self._keep(
                arm,
                ALL,
                "side_flip",
                measured.share,
                self.n_real.get("side", 0),
                measured.n,
                measured.num_groups,
            )
            self.flips[arm] = {"n": measured.n, "chance": agreement.chance_of_flips(pairs)}

    def compare(self, arms: Sequence[str]) -> None:
        """Keep the differences between arms, which share their prompts and so their draws."""
        for estimates in self.estimates.values():
            shown = [arm for arm in arms if arm in estimates and len(estimates[arm].draws)]
            pairs = all_differences(estimates, shown, confidence=self.scorer.config.confidence)
            for pair, row in pairs.items():
                self.scorer.add_difference(pair, row, features=None)

    def _add(self, arm: str, answers: Sequence[agreement.JudgedImage]) -> None:
        """Score every field over all images, each class and each orientation."""
        is_real = arm == REAL or arm.startswith(VAE)
        labels = sorted({answer.label for answer in answers})
        planes = sorted({answer.plane for answer in answers} - {UNKNOWN})
        for field in (*self.estimates, *agreement.ONE_SIDED):
            for group in (ALL, *labels, *planes) if field in agreement.FIELDS else (ALL,):
                members = [a for a in answers if group in (ALL, a.label, a.plane)]
                rows = agreement.list_rows(members, field)
                measured = agreement.measure(
                    rows,
                    num_draws=self.scorer.config.num_bootstrap,
                    seed_parts=self._seed(field, group),
                )
                if measured is None:
                    continue
                if group == ALL and arm == REAL:
                    self.n_real[field] = measured.n
                n_real = measured.n if is_real else self.n_real.get(field, 0)
                denied = {row.group for row in rows if row.requested == "no"}
                kept = self._keep(
                    arm,
                    group,
                    field,
                    measured.share,
                    n_real,
                    measured.n,
                    measured.num_groups,
                    len(denied) if field in OF_ABSENCE else None,
                )
                if field in agreement.ONE_SIDED:
                    self.one_sided.setdefault(arm, {})[field] = kept
                if group == ALL and field in agreement.FIELDS:
                    self._note(arm, field, measured, kept)
                if group == ALL and field in CONFUSED:
                    self.confusion.setdefault(arm, {})[field] = agreement.count_pairs(rows)

    def _note(self, arm: str, field: str, measured: agreement.Measured, kept: Estimate) -> None:
        """Keep what a share is compared with: chance, and for arms the difference from it."""
        self.fields.setdefault(arm, {})[field] = {
            "chance": float(measured.chance[0]),
            "commonest": measured.commonest,
            "majority": measured.majority,
            "n": measured.n,
            "num_groups": measured.num_groups,
        }
        self.estimates[field][arm] = kept
        if len(kept.draws):
            value, draws = float(measured.chance[0]), measured.chance[1:]
            by_chance = replace(kept, value=value, low=None, high=None, draws=draws)
            row = difference(kept, by_chance, confidence=self.scorer.config.confidence)
            self.scorer.add_difference(f"{arm} - {CHANCE}", row, features=None)

    def _keep(
        self,
        arm: str,
        group: str,
        name: str,
        values: FloatArray,
        n_real: int,
        n_synthetic: int,
        num_groups: int,
        num_negative_groups: int | None = None,
    ) -> Estimate:
        made = make_estimate(
            SPECS[name],
            values,
            num_groups=num_groups,
            confidence=self.scorer.config.confidence,
            n_real=n_real,
            n_synthetic=n_synthetic,
        )
        kept = replace(made, num_negative_groups=num_negative_groups)
        self.scorer.add(arm, group, None, kept)
        return kept

    def _seed(self, *parts: str) -> tuple[int | str, ...]:
        return (self.scorer.seed, "evaluate", "location", *parts)
