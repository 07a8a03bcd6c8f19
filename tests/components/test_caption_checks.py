from typing import Any

from pipeline.contracts import CaptionRecord, Label, TumorReport
from stages.components.caption_checks import (
    compute_agreement,
    compute_fill_rates,
    compute_named_classes,
    compute_presence,
    summarise,
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
    assert rates["orientation"] == 0.5
    assert set(compute_fill_rates([]).values()) == {0}


def test_agreement_counts_what_the_truth_knows() -> None:
    truth = YES.model_copy(update={"location": "convexity"})
    sagittal = YES.model_copy(update={"side": "unknown", "orientation": "sagittal"})
    scores = compute_agreement([(YES, truth), (TumorReport(tumor=True), truth), (YES, sagittal)])
    assert scores["tumor"] == {"accuracy": 1, "stated": 1, "n": 3}
    assert scores["side"] == {"accuracy": 0.5, "stated": 0.5, "n": 2}
    assert scores["location"]["accuracy"] == 1 / 3
    assert scores["orientation"] == {"accuracy": 1 / 3, "stated": 2 / 3, "n": 3}
    assert "size" not in scores


def test_presence_against_labels() -> None:
    silent = TumorReport(orientation="axial")
    records = [
        *[caption("glioma", YES)] * 3,
        caption("glioma", NO),
        *[caption("notumor", NO)] * 2,
        caption("notumor", YES),
        caption("notumor", silent),
        caption("glioma", None, status="failed"),
    ]
    assert compute_presence(records) == {
        "true_positive": 3,
        "false_negative": 1,
        "true_negative": 2,
        "false_positive": 1,
        "silent": 1,
    }


def test_classes_named_by_captions() -> None:
    records = [
        caption("glioma", YES, text="a Glioma"),
        caption("glioma", YES, text="a meningioma"),
        caption("pituitary", YES, text="an adenoma"),
        caption("notumor", NO, text="no glioma"),
    ]
    named = compute_named_classes(records)
    assert named == {"glioma": {"share": 0.5, "n": 2}, "pituitary": {"share": 1, "n": 1}}


def test_summary() -> None:
    records = [
        caption("glioma", YES, slice_id="a"),
        caption("glioma", NO, slice_id="b", raw="w " * 9, num_tokens=7),
        caption("glioma", None, slice_id="c", status="failed", text=""),
    ]
    notes = summarise(records, {"a": YES, "b": None}, lambda text: len(text.split()), 6)
    assert notes["tokens"] == {
        "limit": 6,
        "max": 7,
        "mean": 6,
        "over_before_rendering": 1,
        "over_after_rendering": 1,
    }
    assert notes["distinct"] == {"raw": 2, "text": 1, "n": 2}
    assert notes["agreement_with_truth"]["tumor"]["n"] == 1
    assert summarise([], {}, len, 6)["tokens"]["mean"] == 0
