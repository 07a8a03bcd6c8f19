import json
from typing import Any

from pipeline.contracts import CaptionRecord, Label, SliceRecord, TumorReport
from stages.caption.quality import (
    compute_fill_rates,
    compute_named_classes,
    measure_tokens,
    read_own_report,
    summarise,
)


def item(slice_id: str, label: Label, truth: TumorReport | None) -> SliceRecord:
    return SliceRecord(
        slice_id=slice_id,
        subject_id=None,
        group_id=slice_id,
        source="phantom",
        split="train",
        label=label,
        image_path="x.png",
        original="x.nii",
        original_width_px=8,
        original_height_px=8,
        truth=truth,
    )


def caption(label: Label, report: TumorReport | None, **changes: Any) -> CaptionRecord:
    values: dict[str, Any] = {
        "file_name": "x.png",
        "text": "tumor: yes",
        "slice_id": "s",
        "label": label,
        "split": "train",
        "status": "ok",
        "report": report,
        "raw": "one two three",
        "num_tokens": 5,
    }
    return CaptionRecord(**{**values, **changes})


YES = TumorReport(tumor=True, side="left", location="falx", orientation="axial")
NO = TumorReport(tumor=False, orientation="unknown")


def test_fill_rates_count_traits_among_tumours() -> None:
    rates = compute_fill_rates([YES, YES.model_copy(update={"side": "unknown"}), NO, NO])
    assert rates["tumor"] == 1
    assert rates["side"] == 0.5
    assert rates["location"] == 1
    assert rates["size"] == 0
    assert rates["type"] == 0
    assert rates["orientation"] == 0.5
    assert set(compute_fill_rates([]).values()) == {0}


def test_classes_named_by_captions() -> None:
    records = [
        caption("glioma", YES, text="a Glioma"),
        caption("glioma", YES, text="a meningioma"),
        caption("pituitary", YES, text="an adenoma"),
        caption("notumor", NO, text="no glioma"),
    ]
    named = compute_named_classes(records)
    assert named == {"glioma": {"share": 0.5, "n": 2}, "pituitary": {"share": 1, "n": 1}}


def test_lengths() -> None:
    found = measure_tokens([5, 9, 100], [5, 9, 77], 77)
    assert found["before"] == {
        "mean": 38,
        "median": 9,
        "max": 100,
        "over": 1,
        "share_over": 1 / 3,
    }
    assert found["after"]["over"] == 0
    assert measure_tokens([], [], 77)["before"]["mean"] == 0


def test_own_words_are_not_the_label() -> None:
    """`include_label` writes the class before the description, whatever the captioner saw."""
    record = caption("glioma", YES.model_copy(update={"general_description": "glioma."}))
    own = read_own_report(record.model_copy(update={"raw": "tumor: yes; description: a mass"}))
    assert own is not None
    assert own.general_description == "a mass"
    assert read_own_report(caption("glioma", None, status="failed")) is None


def test_summary() -> None:
    said = "tumor: yes; location: left falx; orientation: axial"
    records = [
        caption("glioma", YES, slice_id="a", raw=said),
        caption("glioma", NO, slice_id="b", raw="tumor: no", num_tokens=7),
        caption("glioma", None, slice_id="c", status="failed", text="", raw=""),
    ]
    slices = [item(name, "glioma", YES if name == "a" else None) for name in "abc"]
    notes = summarise(records, slices, lambda text: len(text.split()), 6, seed=1)
    assert notes["tokens"]["limit"] == 6
    assert (notes["tokens"]["before"]["max"], notes["tokens"]["before"]["over"]) == (7, 1)
    assert (notes["tokens"]["after"]["max"], notes["tokens"]["after"]["over"]) == (7, 1)
    assert notes["distinct"] == {"raw": 2, "text": 1, "n": 2}
    assert notes["fill_rate"]["location"] == 1
    rows = {row["field"]: row for row in notes["agreement"]}
    assert rows["tumor"]["n"] == 3
    assert rows["location"]["n"] == 1
    assert notes["presence"]["sensitivity"]["value"] == 1 / 3
    json.dumps(notes, allow_nan=False)
    empty = summarise([], [], len, 6, seed=1)
    assert empty["agreement"] == []
    assert empty["tokens"]["after"]["mean"] == 0
