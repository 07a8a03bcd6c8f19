"""Agreement against hand-made truths, and kappa against scikit-learn's."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from pipeline.contracts import Label, SliceRecord, TumorReport
from stages.components.tumor_report.agreement import (
    Comparison,
    agreement_of,
    measure_agreement,
    measure_presence,
    read_field,
    score_field,
    score_presence,
)

YES = TumorReport(
    tumor=True,
    location="falx",
    side="left",
    size="small",
    orientation="axial",
    general_description="axial brain MRI with a meningioma",
)
NO = TumorReport(tumor=False, orientation="axial")


def item(slice_id: str, label: Label, truth: TumorReport | None, **changes: Any) -> SliceRecord:
    values: dict[str, Any] = {
        "slice_id": slice_id,
        "subject_id": None,
        "group_id": slice_id,
        "source": "phantom",
        "split": "train",
        "label": label,
        "image_path": "x.png",
        "mask_path": "m.png",
        "original": "x.nii",
        "original_width_px": 8,
        "original_height_px": 8,
        "truth": truth,
    }
    return SliceRecord(**{**values, **changes})


def pairs(
    said: list[str | None], known: list[str], groups: list[str] | None = None
) -> list[Comparison]:
    names = groups or [str(index) for index in range(len(said))]
    return [Comparison(*values, "ground truth") for values in zip(said, known, names, strict=True)]


def rows_by_field(reports: Any, slices: list[SliceRecord]) -> dict[str, dict[str, Any]]:
    return {row["field"]: row for row in measure_agreement(reports, slices, seed=1)}


def test_fields_of_a_report() -> None:
    assert read_field(YES, "type") == "meningioma"
    assert read_field(YES, "tumor") == "yes"
    assert read_field(YES, "shape") is None
    assert read_field(YES.model_copy(update={"side": "unknown"}), "side") is None
    assert read_field(None, "tumor") is None
    denied = NO.model_copy(update={"general_description": "No glioma is seen."})
    assert read_field(denied, "type") is None


def test_perfect_captions() -> None:
    slices = [item("a", "meningioma", YES), item("b", "notumor", NO)]
    rows = rows_by_field({"a": YES, "b": NO}, slices)
    assert set(rows) == {"tumor", "type", "location", "side", "size", "orientation"}
    assert rows["tumor"]["accuracy"]["value"] == 1
    assert rows["tumor"]["kappa"]["value"] == 1
    assert rows["tumor"]["reference"] == "ground truth"
    assert rows["side"]["reference"] == "mask"
    assert rows["type"]["n"] == 1
    assert rows["orientation"]["kappa"]["value"] is None  # one value only: chance is always right
    assert rows["tumor"]["accuracy"]["low"] is None  # two groups are too few for an interval


def test_kappa_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    known = rng.choice(["left", "right", "midline"], 200, p=[0.5, 0.3, 0.2]).tolist()
    said = [k if keep else s for k, keep, s in zip(
        known, rng.random(200) < 0.4, rng.choice(["left", "right", "midline"], 200), strict=True
    )]  # fmt: skip
    row = score_field(pairs(said, known), "side", seed=1)
    assert row["kappa"]["value"] == pytest.approx(cohen_kappa_score(known, said), rel=1e-12)
    assert row["majority"] == known.count("left") / 200
    assert row["commonest"] == "left"
    assert row["above_majority"]["value"] == pytest.approx(
        row["accuracy"]["value"] - row["majority"]
    )
    for name in ("accuracy", "kappa", "above_majority"):
        assert row[name]["low"] < row[name]["value"] < row[name]["high"], name


def test_an_answer_beyond_the_known_values_agrees_with_none() -> None:
    row = score_field(pairs(["oval", None, "round"], ["round"] * 3), "shape", seed=1)
    assert row["accuracy"]["value"] == pytest.approx(1 / 3)
    assert row["stated"] == pytest.approx(2 / 3)
    assert row["chance"] == pytest.approx(1 / 3)
    assert row["kappa"]["value"] == pytest.approx(0)


def test_silence_and_failure_earn_nothing() -> None:
    slices = [item(name, "meningioma", YES) for name in "abc"]
    rows = rows_by_field({"a": YES, "b": TumorReport(tumor=True), "c": None}, slices)
    assert rows["location"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert rows["location"]["stated"] == pytest.approx(1 / 3)
    assert rows["tumor"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert all(row["n"] == 3 for field, row in rows.items() if field != "side")
    assert (rows["side"]["n"], rows["side"]["accuracy"]["value"]) == (2, 0.5)  # one failed


def test_the_side_is_left_against_right_where_a_tumor_is_stated() -> None:
    """Right about all of the midline, at chance about sides: no better than at chance."""
    midline = YES.model_copy(update={"side": "midline"})
    right = YES.model_copy(update={"side": "right"})
    slices = [item(f"m{k}", "pituitary", midline) for k in range(20)]
    slices += [item(f"s{k}", "glioma", (YES, right)[k % 2]) for k in range(20)]
    slices += [item(f"d{k}", "glioma", YES) for k in range(5)]
    reports = {f"m{k}": midline for k in range(20)} | {f"s{k}": YES for k in range(20)}
    row = rows_by_field(reports | {f"d{k}": NO for k in range(5)}, slices)["side"]
    assert (row["n"], row["accuracy"]["value"], row["majority"]) == (20, 0.5, 0.5)


def test_the_side_counts_only_where_a_mask_shows_it() -> None:
    slices = [item("a", "meningioma", YES, mask_path=None), item("b", "meningioma", YES)]
    rows = rows_by_field({"a": YES, "b": YES}, slices)
    assert rows["side"]["n"] == 1
    assert rows["location"]["n"] == 2
    assert "side" not in rows_by_field({"a": YES}, slices)


def test_without_truth_the_label_tells_presence_and_type_only() -> None:
    slices = [item("a", "meningioma", None), item("b", "glioma", None), item("c", "notumor", None)]
    rows = rows_by_field({"a": YES, "b": YES, "c": YES}, slices)
    assert set(rows) == {"tumor", "type"}
    assert rows["tumor"]["reference"] == "folder label"
    assert rows["tumor"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert rows["type"]["accuracy"]["value"] == 0.5


def test_truth_counts_before_the_label() -> None:
    """A slice of a patient with a tumour that does not pass through it."""
    slices = [item("a", "glioma", NO), item("b", "glioma", None)]
    rows = rows_by_field({"a": NO, "b": NO}, slices)
    assert rows["tumor"]["accuracy"]["value"] == 0.5
    assert rows["tumor"]["reference"] == "folder label or ground truth"
    assert rows["type"]["n"] == 1


def test_intervals_resample_groups_and_not_slices() -> None:
    said = ["left", "right"] * 60
    known = ["left"] * 120
    alone = score_field(pairs(said, known), "side", seed=1)["accuracy"]
    subjects = [str(index // 2 % 10 * 2 + index % 2) for index in range(120)]  # 20, all alike
    together = score_field(pairs(said, known, subjects), "side", seed=1)
    wide = together["accuracy"]
    assert together["num_groups"] == 20
    assert wide["high"] - wide["low"] > 1.8 * (alone["high"] - alone["low"])


def test_no_interval_of_a_share_has_no_width() -> None:
    """All right: subjects are counted and not slices, and no difference is certain."""
    subjects = [str(index % 20) for index in range(160)]
    row = score_field(pairs(["left"] * 160, ["left"] * 160, subjects), "side", seed=1)
    assert row["accuracy"]["high"] == 1
    assert row["accuracy"]["low"] == pytest.approx(0.82, abs=0.01)
    assert row["above_majority"]["low"] < 0 < row["above_majority"]["high"]
    assert (row["kappa"]["value"], row["kappa"]["low"]) == (None, None)


def test_one_seed_repeats_and_two_differ() -> None:
    data = pairs(["left", "right", "left"] * 20, ["left", "right", "right"] * 20)
    first, again, other = (score_field(data, "side", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["accuracy"]["value"] == other["accuracy"]["value"]
    assert first["kappa"] != other["kappa"]


def test_presence() -> None:
    slices = [item(str(index), "glioma", None) for index in range(12)]
    slices += [item(str(index), "notumor", None) for index in range(12, 20)]
    said: list[TumorReport | None] = [YES] * 9 + [NO] * 2 + [None] + [NO] * 6 + [YES] * 1
    said += [TumorReport(orientation="axial")]
    reports = {str(index): report for index, report in enumerate(said)}
    found = measure_presence(reports, slices, seed=1)
    assert found["sensitivity"]["value"] == 0.75
    assert found["specificity"]["value"] == 0.75
    assert found["sensitivity"]["low"] < 0.75 < found["sensitivity"]["high"]
    names = ("true_positive", "false_negative", "silent_with_tumor")
    assert [found[name] for name in names] == [9, 2, 1]
    names = ("true_negative", "false_positive", "silent_without_tumor")
    assert [found[name] for name in names] == [6, 1, 1]
    assert (found["n_with_tumor"], found["n_without_tumor"]) == (12, 8)
    assert (found["groups_with_tumor"], found["groups_without_tumor"]) == (12, 8)
    assert found["reference"] == "folder label"


def test_presence_without_any_slice_of_a_kind() -> None:
    found = score_presence(pairs(["yes"] * 6, ["yes"] * 6), seed=1)
    assert found["specificity"] == {"value": None, "low": None, "high": None}
    assert score_presence([], seed=1)["n_with_tumor"] == 0


def test_agreement_of_several_tables_at_once() -> None:
    tables = np.array(
        [[[5.0, 0.0], [0.0, 5.0]], [[5.0, 5.0], [5.0, 5.0]], [[9.0, 0.0], [0.0, 0.0]]]
    )
    accuracy, chance, kappa = agreement_of(tables)
    np.testing.assert_allclose(accuracy, [1, 0.5, 1])
    np.testing.assert_allclose(chance, [0.5, 0.5, 1])
    np.testing.assert_allclose(kappa, [1, 0, np.nan])
